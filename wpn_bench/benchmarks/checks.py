"""Check a task before a run computes anything: the types of its fields, and its templates on every document.

The function `rehearse` builds the requests of all documents and scores two documents with made-up answers. It uses
lm-eval's own code for this.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wpn_bench.benchmarks.definitions import Function, TaskDefinition
from wpn_bench.benchmarks.loading import load_configured, quiet_lm_eval, zero_shot
from wpn_bench.benchmarks.scores import Score
from wpn_bench.benchmarks.units import Parts, higher_is_better
from wpn_bench.errors import UserError

_QUOTES = "put it in quotes, because YAML does not read yes, no, on, off, null, numbers and dates as text"
_TEXTS = ("dataset_path", "dataset_name", "training_split", "validation_split", "test_split", "fewshot_split")
_MORE_TEXTS = ("description", "target_delimiter", "fewshot_delimiter", "gen_prefix", "task_alias")
_FUNCTIONS = ("process_docs", "process_results", "custom_dataset")
_OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "generate_until", "loglikelihood_rolling")
_NAMES: dict[type, str] = {bool: "a boolean", int: "a number", float: "a number", type(None): "null", list: "a list"}


def check_fields(definition: TaskDefinition) -> None:
    """Check the types of a task's fields without its data.

    Raises:
        UserError: A field has a wrong type. The message names the file and the field.
    """
    fields = definition.fields
    for path, key in definition.repeated:
        if "lm_eval" not in path.parts:
            raise UserError(f"{path}: {key} is given twice", "remove one of them")
    for key in (*_TEXTS, *_MORE_TEXTS):
        _require(definition, key, fields.get(key), (str, type(None)), "text")
    for key in _FUNCTIONS:
        if (value := fields.get(key)) is not None and not isinstance(value, Function):
            raise UserError(f"{definition.where(key)} is not a function", "write !function MODULE.NAME")
    for key in ("doc_to_image", "doc_to_audio"):
        if fields.get(key):
            raise UserError(f"{definition.where(key)}: images and sound are not supported", "remove the task")
    if fields.get("unsafe_code"):
        raise UserError(
            f"{definition.where('unsafe_code')}: tasks that run a model's code are not supported", "remove the task"
        )
    _check_lists(definition)
    if "class" in fields or fields.get("use_prompt"):
        return
    if (kind := fields.get("output_type", "generate_until")) not in _OUTPUT_TYPES:
        raise UserError(f"{definition.where('output_type')} is {kind!r}", f"known: {', '.join(_OUTPUT_TYPES)}")
    needed = ["doc_to_text", "doc_to_target"] if kind != "loglikelihood_rolling" else []
    for key in (*needed, *(["doc_to_choice"] if kind == "multiple_choice" else [])):
        if fields.get(key) is None:
            raise UserError(f"{definition.where(key)} is missing", "add it to the file")
    if not fields.get("test_split") and not fields.get("validation_split"):
        raise UserError(f"{definition.where('test_split')} is missing", "add test_split or validation_split")
    if fields.get("dataset_path") is None and fields.get("custom_dataset") is None:
        raise UserError(f"{definition.where('dataset_path')} is missing", "add it to the file")
    _require(definition, "doc_to_text", fields.get("doc_to_text"), (str, int, type(None)), "text")
    _require(definition, "doc_to_target", fields.get("doc_to_target"), (str, int, list, type(None)), "text or an index")
    choices = fields.get("doc_to_choice")
    _require(definition, "doc_to_choice", choices, (str, list, dict, type(None)), "text or a list of texts")
    listed = dict(enumerate(choices)) if isinstance(choices, list) else choices if isinstance(choices, dict) else {}
    for at, value in listed.items():
        _require(definition, f"doc_to_choice[{at}]", value, (str,), "text")
        if not value:
            raise UserError(f"{definition.where(f'doc_to_choice[{at}]')} is empty", "write the text of the choice")


def _check_lists(definition: TaskDefinition) -> None:
    fields = definition.fields
    for key, inner in (("metric_list", "metric"), ("filter_list", "name")):
        listed = fields.get(key)
        if listed is None:
            continue
        if not isinstance(listed, list) or not all(isinstance(one, dict) and one.get(inner) for one in listed):
            raise UserError(
                f"{definition.where(key)} is not a list of entries with {inner!r}", f"write - {inner}: NAME"
            )
        for k, one in enumerate(listed):
            _require(definition, f"{key}[{k}].{inner}", one[inner], (str,), "text")
            if key == "metric_list":
                _require(
                    definition,
                    f"{key}[{k}].higher_is_better",
                    one.get("higher_is_better"),
                    (bool, type(None)),
                    "true or false",
                )
    for key, allowed in (("num_fewshot", int), ("repeats", int), ("generation_kwargs", dict), ("dataset_kwargs", dict)):
        _require(definition, key, fields.get(key), (allowed, type(None)), {int: "a number", dict: "a mapping"}[allowed])
    until = (fields.get("generation_kwargs") or {}).get("until")
    for value in until if isinstance(until, list) else [until]:
        _require(definition, "generation_kwargs.until", value, (str, type(None)), "text")


def _require(definition: TaskDefinition, key: str, value: Any, allowed: tuple[type, ...], what: str) -> None:
    if isinstance(value, allowed) and not (isinstance(value, bool) and bool not in allowed):
        return
    kind = _NAMES.get(type(value), "a date" if isinstance(value, datetime.date) else type(value).__name__)
    hint = _QUOTES if "text" in what and not isinstance(value, list | dict) else f"give {what}"
    raise UserError(f"{definition.where(key)} is {value!r} ({kind}), not {what}", hint)


class _WrongField(Exception):
    """A field of the task file is wrong."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


def _short(e: BaseException) -> str:
    text = " ".join(str(e).split())[:160]
    name = type(e).__name__
    return text if name in ("UndefinedError", "TemplateSyntaxError") else f"{name}: {text}"


@contextmanager
def _field(key: str) -> Iterator[None]:
    try:
        yield
    except (_WrongField, UserError):
        raise
    except Exception as e:
        raise _WrongField(key, _short(e)) from e


def _checked_task() -> type[Any]:
    """Return a subclass of lm-eval's task whose methods name the field that is wrong."""
    from lm_eval.api.task import ConfigurableTask

    class CheckedTask(ConfigurableTask):
        def doc_to_text(self, doc: Any, *args: Any, **kwargs: Any) -> Any:
            with _field("doc_to_text"):
                text = super().doc_to_text(doc, *args, **kwargs)
            if isinstance(text, bool) or not isinstance(text, str | int):
                raise _WrongField("doc_to_text", f"gives {text!r}, not text")
            return text

        def doc_to_choice(self, doc: Any, *args: Any, **kwargs: Any) -> Any:
            with _field("doc_to_choice"):
                choices = super().doc_to_choice(doc, *args, **kwargs)
            if not isinstance(choices, list | tuple) or not choices:
                raise _WrongField("doc_to_choice", f"gives {choices!r}, not a list of choices")
            if wrong := [c for c in choices if not isinstance(c, str) or not c]:
                raise _WrongField(
                    "doc_to_choice", f"gives the choice {wrong[0]!r}, which is not a text with characters"
                )
            return choices

        def doc_to_target(self, doc: Any, *args: Any, **kwargs: Any) -> Any:
            with _field("doc_to_target"):
                target = super().doc_to_target(doc, *args, **kwargs)
            if target is None or isinstance(target, bool):
                raise _WrongField("doc_to_target", f"gives {target!r}")
            if self.OUTPUT_TYPE == "multiple_choice" and not args and not getattr(self, "multiple_input", 0):
                self._check_target(target, len(self.doc_to_choice(doc)), self.doc_to_choice(doc))
            return target

        def _check_target(self, target: Any, n: int, choices: Any) -> None:
            if self.config.process_results is not None or isinstance(self.doc_to_text(self.task_docs[0]), int):
                return
            for one in target if isinstance(target, list) else [target]:
                if isinstance(one, int) and not 0 <= one < n:
                    raise _WrongField("doc_to_target", f"gives {one}, but there are {n} choices, 0 to {n - 1}")
                if isinstance(one, str) and one not in choices:
                    raise _WrongField("doc_to_target", f"gives {one[:80]!r}, which is neither an index nor a choice")

        def doc_to_prefix(self, doc: Any) -> Any:
            with _field("gen_prefix"):
                return super().doc_to_prefix(doc)

        def process_results(self, doc: Any, results: Any) -> Any:
            with _field("process_results" if self.config.process_results else "metric_list"):
                return super().process_results(doc, results)

        def apply_filters(self) -> Any:
            with _field("filter_list"):
                return super().apply_filters()

        def _docs(self, key: str, docs: Callable[[], Any]) -> Any:
            split = self.config[key]
            if split is not None and split not in self.dataset:
                raise _WrongField(key, f"the data has no split {split!r} (it has {', '.join(map(str, self.dataset))})")
            with _field("process_docs" if self.config.process_docs else key):
                found = docs()
            if (
                self.config.process_docs
                and key != "training_split"
                and not hasattr(getattr(found, "features", None), "keys")
            ):
                raise _WrongField("process_docs", f"returns {type(found).__name__}, not a data set of `datasets`")
            if split is not None and (found is None or not len(found)):
                raise _WrongField("process_docs" if self.config.process_docs else key, "gives no documents")
            return found

        def test_docs(self) -> Any:
            return self._docs("test_split", super().test_docs)

        def validation_docs(self) -> Any:
            return self._docs("validation_split", super().validation_docs)

        def training_docs(self) -> Any:
            return self._docs("training_split", super().training_docs)

        def fewshot_docs(self) -> Any:
            split = self.fewshot_cfg.split
            if split is not None and split not in self.dataset:
                raise _WrongField("fewshot_split", f"the data has no split {split!r}")
            return super().fewshot_docs()

    return CheckedTask


def _made_up_model(chat: Callable[..., str] | None) -> Any:
    from lm_eval.api.model import LM

    class MadeUp(LM):
        """Answers without a model."""

        tokenizer_name = ""

        def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
            return [(-1.0 - request.idx, False) for request in requests]

        def loglikelihood_rolling(self, requests: Any) -> list[float]:
            return [-1.0 for _ in requests]

        def generate_until(self, requests: Any) -> list[str]:
            return ["made up" for _ in requests]

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            assert chat is not None
            return chat(chat_history, add_generation_prompt)

    return MadeUp()


def rehearse(
    definition: TaskDefinition,
    include_paths: Sequence[Path],
    revision: str | None,
    score: Score,
    limit: int | None = None,
    chat: Callable[..., str] | None = None,
    multiturn: bool = False,
) -> None:
    """Check a benchmark task without a model.

    The task is loaded, the requests of its documents are built, and two documents are scored with made-up answers.

    Args:
        definition: The task.
        include_paths: Folders of task files.
        revision: Commit of the task's data.
        score: The score that the task must report.
        limit: Number of documents; None means all.
        chat: The chat template as a function of the messages and of whether to add the generation prompt. It returns a
            text. None applies no chat template.
        multiturn: Whether few-shot examples are turns of the conversation.

    Raises:
        UserError: The task cannot be used. The message names the file and the field.
    """
    import lm_eval
    from lm_eval.tasks import _factory

    plain = _factory.ConfigurableTask
    with quiet_lm_eval():
        try:
            _factory.ConfigurableTask = _checked_task()
            task = zero_shot(load_configured(definition, include_paths, revision))
            options = {"apply_chat_template": chat is not None, "fewshot_as_multiturn": multiturn}
            lm = _made_up_model(chat)
            template = lm.apply_chat_template if chat else None
            task.build_all_requests(limit=limit, chat_template=template, **options)
            few = min(limit or 2, 2)
            found: Any = lm_eval.evaluate(
                lm=lm, task_dict={"tasks": {definition.name: task}}, limit=few, bootstrap_iters=0, **options
            )
        except UserError:
            raise
        except Exception as e:
            key = e.key if isinstance(e, _WrongField) else ""
            why = str(e) if key else _short(e)
            where = definition.where(key) if key else str(definition.path)
            raise UserError(f"{where}: {why}", f"correct the file of the task {definition.name!r}") from e
        finally:
            _factory.ConfigurableTask = plain
    reported = found["results"][definition.name]
    if score.key not in reported:
        known = ", ".join(k for k in reported if "," in k and "_stderr" not in k)
        raise UserError(
            f"the task {definition.name!r} reports no {score.key} (it reports {known})",
            f"choose another: --metric {definition.name}=METRIC[,FILTER]",
        )
    higher_is_better(definition.name, found["higher_is_better"].get(definition.name, {}), score)
    parts = Parts(task, score.metric)
    values = [
        sample.get(score.metric) for sample in found["samples"][definition.name] if sample["filter"] == score.filter
    ]
    if not all(map(parts.is_number, values)):
        raise UserError(
            f"{score.metric!r} of the task {definition.name!r} is not a number for each document",
            "choose another metric with --metric",
        )
