"""Makes lm-eval know our models and tasks. Loads lm-eval itself only when asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmguide.eval.harness.data import Offline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODELS = {
    "lmguide-hf": "lmguide.eval.harness.hf:GuidedHFLM",
    "lmguide-diffusion": "lmguide.eval.harness.diffusion:GuidedDiffusionLM",
    "lmguide-vllm": "lmguide.eval.harness.vllm:GuidedVLLM",
    "lmguide-completions": "lmguide.eval.harness.completions:GuidedCompletions",
}
"""Names of our models in lm-eval → where they are. The same names are entry points of the group `lm_eval.models`, which
releases after 0.4.13 read by themselves."""
TASKS = Path(__file__).parents[1] / "tasks"


def register() -> None:
    """Make lm-eval know `MODELS` in this process; again does nothing.

    Raises:
        ImportError: lm-eval is not installed.
    """
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


def manager(
    data: str | Path | None = None,
    include_path: Sequence[str | Path] = (),
    metadata: Mapping[str, Any] | None = None,
    defaults: bool = True,
) -> Any:
    """lm-eval's task manager with our tasks.

    Args:
        data: Folder with copies of data sets, which then take the place of those on the hub; see `docs/eval.md`.
        include_path: Further folders of tasks.
        metadata: Handed to tasks that read it.
        defaults: Whether lm-eval's own tasks are known too, which takes some seconds.

    Returns:
        A `lm_eval.tasks.TaskManager`.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: There is no such folder.

    Example:
        >>> "tales_mc" in manager(defaults=False).all_tasks
        True
    """
    from lm_eval.tasks import TaskManager

    offline = Offline(data)
    folders = [str(TASKS), *map(str, include_path)]
    for folder in folders:
        if not Path(folder).is_dir():
            raise ValueError(f"include_path: expected a folder of tasks, got {folder!r}. Make it first.")

    class Manager(TaskManager):  # type: ignore[misc]  # lm-eval ships no types
        """A task manager that reads local copies where there are some."""

        def _load_spec(self, spec: Any) -> Any:
            with offline.reading():
                local = offline.overrides(spec)
                if local is None:
                    return super()._load_spec(spec)
                return self._factory.build(self._entry(spec), overrides=local, registry=self._index)

    return Manager(include_path=folders, include_defaults=defaults, metadata=dict(metadata or {}))
