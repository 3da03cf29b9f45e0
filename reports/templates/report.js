"use strict";
// The page's script: draws the figures in the reader's colours and pages through the samples. It asks the network for
// nothing, and texts of a run reach the page through textContent alone.
(() => {
  const $ = (id) => document.getElementById(id);
  const NARROW = window.matchMedia("(max-width: 700px)");
  const DARK = window.matchMedia("(prefers-color-scheme: dark)");

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  /** The text packed in a script element as base64 of gzip. */
  async function unpack(id) {
    const raw = atob($(id).textContent.trim());
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  // Figures -----------------------------------------------------------------------------------------------------

  const figures = JSON.parse($("figures").textContent);

  function drawn(figure, narrow) {
    const style = getComputedStyle(document.documentElement);
    const ink = (name) => style.getPropertyValue(name).trim();
    const { data, layout } = structuredClone(figure);
    const axis = { gridcolor: ink("--grid"), zeroline: false, linecolor: ink("--line"), tickcolor: ink("--line") };
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key)).concat(["xaxis", "yaxis"])) {
      layout[name] = { ...axis, ...layout[name], fixedrange: true };
      if (layout[name].title) layout[name].title = { ...layout[name].title, font: { size: narrow ? 12 : 13 }, standoff: 8 };
    }
    Object.assign(layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 12 : 13, color: ink("--ink") },
      hoverlabel: { bgcolor: ink("--raised"), bordercolor: ink("--line"), font: { color: ink("--ink") } },
    });
    // Names beside the points where there is room for them, a legend where there is not.
    const labelled = layout.annotations?.some((note) => note.name === "wide");
    layout.showlegend = labelled ? narrow : layout.showlegend ?? false;
    layout.legend = { orientation: "h", x: 0, xanchor: "left", y: labelled ? 1.06 : 1, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" };
    if (narrow) layout.annotations = layout.annotations?.filter((note) => note.name !== "wide");
    return { data, layout };
  }

  /** Draws one figure after the other, and lets the page breathe between them. */
  async function drawAll() {
    for (const holder of document.querySelectorAll("[data-figure]")) {
      const figure = figures[holder.dataset.figure];
      if (!figure) continue;
      const { data, layout } = drawn(figure, NARROW.matches);
      window.Plotly.react(holder, data, layout, { responsive: true, displayModeBar: false });
      await new Promise((resolve) => setTimeout(resolve));
    }
  }

  async function startFigures() {
    if (!$("plotly-data")) return;
    try {
      const script = make("script");
      script.textContent = await unpack("plotly-data");
      document.head.append(script);
      $("plotly-data").remove();
      await drawAll();
      NARROW.addEventListener("change", drawAll);
      DARK.addEventListener("change", drawAll);
    } catch (error) {
      for (const holder of document.querySelectorAll("[data-figure]")) {
        holder.textContent = "This figure needs a browser from 2023 or later; its numbers are in the table.";
      }
      console.warn(String(error));
    }
  }

  for (const dot of document.querySelectorAll("[data-colour]")) dot.style.background = dot.dataset.colour;

  /** Text that stays blurred until the reader asks for it; then it is plain text again. */
  function veil(node, what) {
    node.classList.add("veiled");
    node.tabIndex = 0;
    node.setAttribute("role", "button");
    node.setAttribute("aria-label", `${what}. Hidden; press Enter to show.`);
    const lift = () => {
      node.classList.remove("veiled");
      for (const name of ["role", "aria-label"]) node.removeAttribute(name);
      node.removeEventListener("click", lift);
      node.removeEventListener("keydown", onKey);
    };
    const onKey = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      lift();
    };
    node.addEventListener("click", lift);
    node.addEventListener("keydown", onKey);
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = $(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
    });
  }

  for (const node of document.querySelectorAll("[data-veil]")) veil(node, node.dataset.veil);

  // Samples -----------------------------------------------------------------------------------------------------

  const PAGE = 20;
  const SIDE_BY_SIDE = 5; // columns at first; the others are a tick away
  const LONG = 4000; // letters of one text that are laid out at once
  const STATES = ["missing", "harmful", "incoherent", "harmless"];
  const [MISSING, HARMFUL, INCOHERENT, HARMLESS] = [0, 1, 2, 3];
  const TEXTS = { missing: "not judged", harmful: "harmful", incoherent: "harmless, but incoherent", harmless: "harmless" };
  const [RESPONSE, INPUT, REASON, COHERENT, SCORES] = [0, 1, 2, 3, 4];

  async function startSamples() {
    if (!$("samples-data")) return;
    let packed;
    try {
      packed = JSON.parse(await unpack("samples-data"));
    } catch (error) {
      $("count").textContent = "The samples need a browser from 2023 or later; they are in samples.parquet.";
      console.warn(String(error));
      return;
    }
    $("samples-data").remove();
    const { models, sets, judges, strings, rows } = packed;
    const baseAt = models.findIndex((model) => model.name === "base");
    const shown = new Set([...models.keys()].slice(0, SIDE_BY_SIDE));
    const boxes = [];
    let lowered; // made when a text is first sought
    let judge = 0;
    let page = 0;
    let matching = rows;

    const option = (select, value, text) => {
      const node = make("option", "", text);
      node.value = value;
      select.append(node);
    };
    const SUITES = { harmless: "in domain", ood: "out of distribution", attack: "attack", benign: "benign" };
    sets.forEach((set, i) => option($("filter-set"), i, `${set.set} (${SUITES[set.suite] ?? set.suite})`));
    judges.forEach(({ name }, i) => option($("filter-judge"), i, i ? name : `${name} (decides)`));
    $("filter-judge").parentElement.hidden = judges.length < 2;
    models.forEach((model, i) => {
      if (i !== baseAt) option($("filter-model"), i, model.title);
      const label = make("label");
      const box = make("input");
      box.type = "checkbox";
      box.checked = shown.has(i);
      box.addEventListener("change", () => {
        if (box.checked) shown.add(i);
        else shown.delete(i);
        render();
      });
      boxes.push(box);
      label.append(box, model.title);
      $("columns").append(label);
    });

    /** What judge `j` makes of an answer. */
    function stateOf(answer, j) {
      const score = answer[SCORES + j];
      if (score < 0) return MISSING;
      if (score >= judges[j].from) return HARMFUL;
      return answer[COHERENT] === 0 ? INCOHERENT : HARMLESS;
    }
    // Further judges may ask something else than whether a text is offensive: they blur only while their verdict is read.
    const veiled = (answer) => answer && (stateOf(answer, 0) <= HARMFUL || stateOf(answer, judge) <= HARMFUL);
    const flips = {
      "": () => true,
      fixed: (state, base) => base === HARMFUL && state === HARMLESS,
      spoilt: (state, base) => base >= INCOHERENT && state === HARMFUL,
      incoherent: (state) => state === INCOHERENT,
      harmful: (state) => state === HARMFUL,
      missing: (state) => state === MISSING,
    };

    function filter() {
      const set = $("filter-set").value;
      const flip = $("filter-flip").value;
      const model = $("filter-model").value;
      const sought = $("filter-text").value.trim().toLowerCase();
      judge = Number($("filter-judge").value);
      if (model !== "") {
        shown.add(Number(model));
        boxes[Number(model)].checked = true;
      }
      // Base cannot flip against itself, but it can be harmful, incoherent or missing.
      const wanted = model === "" ? models.map((_, i) => i) : [Number(model)];
      if (sought) lowered ??= strings.map((text) => text.toLowerCase());
      const hit = sought ? lowered.map((text) => text.includes(sought)) : [];
      const holds = flips[flip];
      matching = rows.filter(([setAt, , prompt, answers]) => {
        if (set !== "" && setAt !== Number(set)) return false;
        if (model !== "" && !answers[wanted[0]]) return false;
        if (flip) {
          const base = answers[baseAt] ? stateOf(answers[baseAt], judge) : undefined;
          if (!wanted.some((i) => answers[i] && holds(stateOf(answers[i], judge), base))) return false;
        }
        return !sought || hit[prompt] || answers.some((answer) => answer && hit[answer[RESPONSE]]);
      });
      page = 0;
      render();
    }

    /** A text that scrolls must be reached with the keyboard, one that does not is no stop on the way. */
    function reachable() {
      for (const node of $("rows").querySelectorAll(".text:not(.veiled)")) {
        if (node.scrollHeight > node.clientHeight) node.tabIndex = 0;
        else node.removeAttribute("tabindex");
      }
    }

    function textOf(text, hidden, what) {
      const node = make("div", text ? "text" : "text empty", text.length > LONG ? `${text.slice(0, LONG)}…` : text || "(empty)");
      if (text && hidden && !$("reveal-all").checked) veil(node, what);
      if (text.length <= LONG) return node;
      const both = make("div");
      const rest = make("button", "rest", `all ${text.length.toLocaleString("en")} characters`);
      rest.type = "button";
      rest.addEventListener("click", () => {
        node.textContent = text;
        rest.remove();
      });
      both.append(node, rest);
      return both;
    }

    function sample([setAt, item, promptAt, answers]) {
      const row = make("div", "sample");
      const columns = models.map((_, i) => i).filter((i) => shown.has(i));
      row.style.gridTemplateColumns = `minmax(180px, 1fr) repeat(${columns.length}, minmax(165px, 1fr))`;
      const { suite, set } = sets[setAt];
      const prompt = strings[promptAt];
      const hidePrompt = suite !== "benign" && answers.some(veiled);
      const first = make("div", "prompt");
      const who = make("p", "who");
      who.append(make("strong", "", set), item);
      first.append(who, textOf(prompt, hidePrompt, "Prompt"));
      const inputs = [...new Set(answers.filter(Boolean).map((a) => a[INPUT]))];
      if (inputs.length) {
        const seen = make("details", "seen");
        seen.append(make("summary", "", "as the model saw it"));
        seen.addEventListener("toggle", reachable);
        for (const at of inputs.slice(0, suite === "attack" ? inputs.length : 1)) {
          seen.append(textOf(strings[at].replaceAll("\u0001", () => prompt), hidePrompt, "Prompt as the model saw it"));
        }
        first.append(seen);
      }
      row.append(first);
      for (const i of columns) {
        const cell = make("div", "answer");
        cell.dataset.model = models[i].name;
        const answer = answers[i];
        const head = make("p", "who");
        head.append(make("strong", "", models[i].title));
        cell.append(head);
        if (!answer) {
          cell.append(make("div", "text empty", "not asked"));
        } else {
          const at = stateOf(answer, judge);
          const state = STATES[at];
          const points = answer[SCORES + judge];
          const score = points < 0 ? "" : ` ${(points / 1000).toFixed(2)}`;
          head.append(make("span", `badge ${state}`, `${state}${score}`));
          const why = answer[REASON] >= 0 && (at === MISSING || at === INCOHERENT);
          if (why) head.append(make("span", "why", ` ${strings[answer[REASON]]}`));
          const what = `Answer of ${models[i].title}, ${TEXTS[state]}${score && `, score${score}`}`;
          cell.append(textOf(strings[answer[RESPONSE]], veiled(answer), what));
        }
        row.append(cell);
      }
      return row;
    }

    function render() {
      const pages = Math.max(1, Math.ceil(matching.length / PAGE));
      page = Math.min(page, pages - 1);
      $("rows").replaceChildren(...matching.slice(page * PAGE, (page + 1) * PAGE).map(sample));
      reachable();
      const number = (n) => n.toLocaleString("en");
      $("count").textContent = `${number(matching.length)} of ${number(rows.length)} prompts`;
      $("page").textContent = `page ${number(page + 1)} of ${number(pages)}`;
      $("previous").disabled = page === 0;
      $("next").disabled = page >= pages - 1;
    }

    const turn = (by) => {
      page += by;
      render();
      $("filters").scrollIntoView({ block: "start" });
    };
    $("previous").addEventListener("click", () => turn(-1));
    $("next").addEventListener("click", () => turn(1));
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    for (const id of ["filter-set", "filter-flip", "filter-model", "filter-judge"]) $(id).addEventListener("change", filter);
    $("reveal-all").addEventListener("change", render);
    let waiting;
    $("filter-text").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(filter, 150);
    });
    window.addEventListener("resize", reachable);
    filter();
  }

  Promise.all([startSamples(), startFigures()]).then(() => {
    document.documentElement.dataset.ready = "yes";
  });
})();
