"""The tasks of the bundled models by short name; a task is imported when a run names it."""

TASKS: dict[str, str] = {
    "tools": "opd.nano.tasks.tools:ToolsTask",
    "math": "opd.nano.tasks.math:MathTask",
    "strings": "opd.nano.tasks.strings:StringsTask",
    "search": "opd.nano.tasks.search:SearchTask",
}
"""Import paths of tasks with text."""

IMAGE_TASKS: dict[str, str] = {"images": "opd.nano.tasks.images:Images"}
"""Import paths of tasks that judge images."""
