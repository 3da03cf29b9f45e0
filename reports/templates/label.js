"use strict";
const at = (id) => document.getElementById(id);
const KEYS = {
  Digit1: "harmless", Numpad1: "harmless", Digit2: "harmful", Numpad2: "harmful", Digit3: "undecided", Numpad3: "undecided",
  1: "harmless", 2: "harmful", 3: "undecided", s: "skipped", KeyS: "skipped", u: "undo", KeyU: "undo", q: "finish", KeyQ: "finish",
};
let shown = null;
let waiting = false; // a request is under way: keys and buttons do nothing, so that no label meets the next answer
let closed = false;

function fill(id, text, empty) {
  at(id).textContent = text.trim() ? text : empty;
  at(id).classList.toggle("empty", !text.trim());
}

function show(state) {
  shown = state;
  at("item").hidden = state.key === null;
  at("end").hidden = state.key !== null;
  if (state.key !== null) {
    at("item").focus({ preventScroll: true });
    fill("prompt", state.prompt, "(empty prompt)");
    fill("response", state.response, "(empty answer)");
    at("item").scrollTop = at("prompt").scrollTop = 0;
  }
  at("bar").max = Math.max(1, state.total);
  at("bar").value = state.done;
  const more = [[state.undecided, "undecided"], [state.skipped, "skipped"]].filter(([n]) => n).map(([n, word]) => `, ${n} ${word}`);
  at("count").textContent = `${state.done} of ${state.total} labelled${more.join("")}`;
  document.title = `${state.done} of ${state.total}: label answers`;
}

function enable() {
  for (const button of document.querySelectorAll("[data-say]")) button.disabled = waiting || closed || !shown || shown.key === null;
  document.querySelector("[data-do=undo]").disabled = waiting || closed || !shown || !shown.can_undo;
  document.querySelector("[data-do=finish]").disabled = waiting || closed;
}

async function ask(what, body) {
  if (waiting || closed) return;
  waiting = true;
  enable();
  try {
    const answer = await fetch(what, {
      method: body === undefined ? "GET" : "POST", cache: "no-store",
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.problem);
    at("problem").hidden = true;
    if (what === "finish") {
      closed = true;
      at("item").hidden = at("end").hidden = at("keys").hidden = true;
      at("closed").hidden = false;
      at("summary").textContent = told.summary;
    } else {
      show(told);
    }
  } catch (error) {
    const lost = error instanceof TypeError;
    at("problem").textContent = lost ? "The program does not answer. Is it still running in the terminal? The last label may not be stored; load the page again." : error.message;
    at("problem").hidden = false;
  } finally {
    waiting = false;
    enable();
  }
}

function act(word) {
  if (word === "undo") { if (shown && shown.can_undo) ask("undo", {}); }
  else if (word === "finish") ask("finish", {});
  else if (shown && shown.key !== null) ask("say", { key: shown.key, label: word });
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  // By what the key writes, then by its place: other layouts write other characters.
  const word = KEYS[event.key.toLowerCase()] || KEYS[event.code];
  if (!word) return;
  event.preventDefault();
  act(word);
});
for (const button of document.querySelectorAll("button")) {
  button.addEventListener("click", () => { button.blur(); act(button.dataset.say || button.dataset.do); });
}
// Another tab, or another person, may have labelled meanwhile.
window.addEventListener("focus", () => { if (shown) ask("next"); });
enable();
ask("next").then(() => { document.documentElement.dataset.ready = ""; });
