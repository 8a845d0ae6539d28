"""The table and the chart of what benchmarks/train.py measured."""

from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

# What is drawn and how it is called.
DRAWN = {"rows_per_second": "rows/s", "peak_mib": "peak memory, MiB"}
PANEL_INCHES = (4.5, 3.2)


def print_scenario(name: str, figures: dict) -> None:
    """Print a scenario's points, one line for each way, with the ratios to its first one."""
    first = next(iter(figures["points"][0]["ways"].values()))["label"]
    title = f"{name}: {figures['description']} ({figures['size']}, {figures['dtype']}, {figures['device']})"
    caption = f"MiB: peak; added: of it since the start of training; speed, memory: {first} over this way"
    table = Table(title=title, caption=caption)
    several = len(figures["points"]) > 1
    if several:
        table.add_column()
    for column in ("way", "rows/s", "tokens/s", "MiB", "added", "speed", "memory"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for point in figures["points"]:
        value = [str(point["value"])] if several else []
        for key, way in point["ways"].items():
            ratio = point["ratios"].get(key)
            table.add_row(
                *value,
                way["label"],
                f"{way['rows_per_second']:.2f}",
                f"{way['tokens_per_second']:.0f}",
                f"{way['peak_mib']:.0f}",
                f"{way['above_start_mib']:.0f}",
                f"{ratio['speed']:.2f} ×" if ratio else "",
                f"{ratio['memory']:.2f} ×" if ratio else "",
            )
            value = [""] if several else []
        table.add_section()
    console = Console()
    console.print(table)
    worst = {
        part: max(point["relative_differences"][part] for point in figures["points"]) for part in ("loss", "grad_norm")
    }
    losses = ", ".join(f"{way['label']} {way['loss']:.7g}" for way in figures["points"][0]["ways"].values())
    console.print(f"Losses of the first step: {losses}", soft_wrap=True)
    console.print(
        f"Largest relative difference between ways: loss {worst['loss']:.1e}, gradient norm {worst['grad_norm']:.1e}",
        soft_wrap=True,
    )


def draw(scenarios: dict[str, dict], file: Path) -> None:
    """Draw every scenario's speed and memory: bars of its ways, or lines where it has several points."""
    width, height = PANEL_INCHES
    figure = Figure(figsize=(2 * width, len(scenarios) * height), layout="constrained")
    panels = figure.subplots(len(scenarios), len(DRAWN), squeeze=False)
    for line, (name, figures) in zip(panels, scenarios.items(), strict=True):
        points = figures["points"]
        labels = {key: way["label"] for key, way in points[0]["ways"].items()}
        for panel, (measure, unit) in zip(line, DRAWN.items(), strict=True):
            for key, label in labels.items():
                values = [point["ways"][key][measure] for point in points]
                if len(points) == 1:
                    panel.bar_label(panel.bar(label, values), fmt="{:,.3g}")
                else:
                    panel.plot([str(point["value"]) for point in points], values, marker="o", label=label)
            panel.set_ylabel(unit)
            panel.set_title(name)
            panel.set_ylim(bottom=0)
            if len(points) == 1:
                panel.tick_params(axis="x", labelrotation=20)
            else:
                panel.set_xlabel(figures["description"])
                panel.legend(fontsize="small")
    figure.savefig(file)
