"""Plan a training run, write its launch files, check that they say what was asked (lesson 15).

    python -m course_utils.launch plan  --model Qwen/Qwen3-8B --nodes 2 --gpu H100-80GB      # does it fit, how fast?
    python -m course_utils.launch plan  --nodes 64 --max_steps 100000 --strategies           # days on 512 GPUs
    python -m course_utils.launch plan  --nodes 512 --global_batch 4096 --layouts            # 3D, pipelines included
    python -m course_utils.launch write --model Qwen/Qwen3-8B --nodes 2 --folder launch      # the launch files
    python -m course_utils.launch write --spec run.yaml --micro_batch 4 --overwrite          # a file; flags win
    python -m course_utils.launch check launch                                               # asked against resolved
    python -m course_utils.launch explain job.sbatch ds.json train.py                        # your own files, no spec
    python -m course_utils.launch explain ds.json --asked micro_batch=4 --json               # your wish; for tools

Exit code: 0 well, 1 a file differs from the spec (check), has findings (explain) or the run does not fit (plan),
2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from course_utils.errors import SpecError, out_of_range
from course_utils.launch.spec import Spec
from course_utils.launch.spec.read import read_fields
from course_utils.launch.spec.yaml_text import load_yaml

MOST_LAYOUTS = 16  # lines of --layouts
LONGEST = 600  # characters of an error: one sentence, whatever a value was


class Parser(argparse.ArgumentParser):
    """Bad input is one sentence; no abbreviations, so that a flag that comes later changes no old command."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{message}; see `{self.prog} --help`")


def read_value(text: str) -> Any:
    """A flag's value as YAML reads it: 2, 0.5, true, null, [a, b], {a: 1}; anything else is text."""
    try:
        return load_yaml(text, "the value") if text.strip() else text
    except SpecError:
        return text


def build_parser() -> Parser:
    """One flag for each field of the spec, with its unit, default and meaning."""
    shape = {"formatter_class": argparse.RawDescriptionHelpFormatter, "description": __doc__}
    parser = Parser(prog="python -m course_utils.launch", **shape)
    commands = parser.add_subparsers(dest="command", required=True, metavar="plan | write | check | explain")
    fields = Parser(add_help=False)
    fields.add_argument("--spec", metavar="FILE", help="YAML file with fields of the spec; flags change them")
    group = fields.add_argument_group("fields of the spec")
    for name, field in Spec.model_fields.items():
        unit = field.json_schema_extra["unit"]
        default = json.dumps(field.default, ensure_ascii=False)
        text = f"{field.description}{f' [{unit}]' if unit else ''} (default: {default})".replace("%", "%%")
        group.add_argument(f"--{name}", metavar=_metavar(field), default=argparse.SUPPRESS, help=text)
    usage = f"{parser.prog} %s [--spec FILE] [--FIELD VALUE ...]"
    plan = commands.add_parser(
        "plan",
        parents=[fields],
        help="memory, speed, cost, and days when machines fail: does it fit?",
        usage=usage % "plan" + " [--strategies] [--layouts] [--stages N]",
    )
    plan.add_argument("--strategies", action="store_true", help="compare all strategies on days and cost")
    plan.add_argument(
        "--layouts", action="store_true", help="FSDP2's: copies x shards x GPUs that share a matrix x stages"
    )
    write = commands.add_parser(
        "write",
        parents=[fields],
        help="write the launch files",
        usage=usage % "write" + " [--folder FOLDER] [--overwrite]",
    )
    write.add_argument("--folder", default="launch", help="where to (default: launch)")
    for command in (plan, write):  # `write` says why not
        command.add_argument("--stages", default="1", metavar="N", help="of a pipeline: planned only (default: 1)")
    write.add_argument("--overwrite", action="store_true", help="replace launch files that are there")
    check = commands.add_parser("check", help="compare launch files with the spec.yaml beside them")
    check.add_argument(
        "folder",
        nargs="?",
        default="launch",
        help="folder of launch files (default: launch); without a spec: explained",
    )
    check.add_argument("--differences", action="store_true", help="print only what differs")
    families = commands.add_parser("families", help="which models can be planned, which not and why")
    families.add_argument("types", nargs="*", metavar="TYPE", help="model_type of a config.json (default: list all)")
    explain = commands.add_parser("explain", help="what do these files really do? no spec needed, nothing is executed")
    explain.add_argument("files", nargs="+", metavar="FILE", help="YAML, JSON, shell script or Python file of one run")
    explain.add_argument(
        "--asked", action="append", default=[], metavar="FIELD=VALUE", help="what you wanted; repeat it"
    )
    explain.add_argument("--json", action="store_true", help="settings and findings as JSON")
    return parser


def _metavar(field: Any) -> str:
    """What may stand behind a flag: the allowed words, a list, or any value."""
    if get_origin(field.annotation) is Literal:
        return "{" + ",".join(get_args(field.annotation)) + "}"
    return "[A, B, ...]" if isinstance(field.default, tuple) else "VALUE"


def read_stages(given: argparse.Namespace) -> int:
    """Stages of a pipeline.

    Raises:
        SpecError: no whole number >= 1.
    """
    number = read_value(given.stages)
    if type(number) is not int or number < 1:
        raise out_of_range("stages", number, "a whole number >= 1")
    return number


def read_spec(given: argparse.Namespace, stages: int = 1) -> Spec:
    """The spec of ``--spec`` with the fields given as flags; text stays text, whatever YAML makes of it.

    Only a model may be a mapping: one of sizes. With several stages the spec is that of one stage's machines, as
    ``plan`` takes it.
    """
    fields = read_fields(given.spec) if given.spec else {}
    for name, field in Spec.model_fields.items():
        if name in given:
            text = getattr(given, name)
            fields[name] = (
                text
                if isinstance(field.default, str) and not (name == "model" and text.startswith("{"))
                else read_value(text)
            )
    if stages == 1:
        return Spec(**fields)
    nodes = fields.get("nodes", 1)
    if not isinstance(nodes, int) or nodes % stages or not nodes:
        raise out_of_range("stages", stages, f"a divisor of nodes={nodes!r}: each stage takes whole machines")
    return Spec(**fields | {"nodes": nodes // stages, "hosts": ()})


def plan(given: argparse.Namespace) -> int:
    stages = read_stages(given)
    if stages > 1 and given.strategies:
        raise SpecError(f"stages={stages} cannot be compared with --strategies; allowed: 1, or --layouts")
    spec = read_spec(given, stages)
    from course_utils.launch.planner.budget import budget_table, days_table
    from course_utils.launch.planner.layouts import layouts
    from course_utils.launch.planner.plan import plan as plan_of
    from course_utils.launch.planner.plan import strategies
    from course_utils.launch.planner.report import plan_table

    found = plan_of(spec, stages=stages)
    print(plan_table(found), budget_table(found), sep="\n\n")
    if given.strategies:
        print("", days_table(strategies(spec)), sep="\n")
    if given.layouts:
        print("", days_table(layouts(spec, stages), MOST_LAYOUTS), sep="\n")
    return 0 if found.fits else 1


def families(given: argparse.Namespace) -> int:
    from course_utils.models.shapes_families import answer, listing

    print("\n".join(answer(kind) for kind in given.types) or listing())
    return 0


def write(given: argparse.Namespace) -> int:
    from course_utils.launch.files.write import write as write_files

    if (stages := read_stages(given)) > 1:
        raise SpecError(f"stages={stages} is planned, but no launch file runs a pipeline; allowed with `write`: 1")
    for path in write_files(read_spec(given), given.folder, given.overwrite):
        print(path)
    return 0


def check(given: argparse.Namespace) -> int:
    from course_utils.launch.check.folder import check as check_files
    from course_utils.launch.check.rows import table

    folder = Path(given.folder)
    if folder.is_file():
        return explain_paths([folder])
    from course_utils.launch.explain.against import against, candidates, known

    if folder.is_dir() and not (folder / "spec.yaml").exists():
        return explain_paths(known(folder))
    rows = check_files(folder)
    read = {"spec.yaml", *(row.file.split(" from ")[0] for row in rows if row.field not in ("bash -n", "shellcheck"))}
    others = [path for path in candidates(folder) if path.name not in read]
    if others:
        rows += against(Spec(**read_fields(folder / "spec.yaml")), others)
    different = [row for row in rows if not row.same]
    if different or not given.differences:
        print(table(different if given.differences else rows))
    print(f"{len(rows)} settings resolved, {len(different)} not as asked")
    return 1 if different else 0


def explain(given: argparse.Namespace) -> int:
    pairs = [pair.partition("=") for pair in given.asked]
    if wrong := next((pair for pair in pairs if not (pair[0].strip() and pair[1])), None):
        raise SpecError(f"asked={''.join(wrong)!r} is not a wish; allowed: FIELD=VALUE, such as micro_batch=4")
    return explain_paths(given.files, {name.strip(): value.strip() for name, _, value in pairs}, given.json)


def explain_paths(paths: Sequence[Any], asked: dict[str, str] | None = None, as_json: bool = False) -> int:
    from course_utils.launch.explain.explain import explain as explain_files
    from course_utils.launch.explain.explain import table

    found = explain_files(paths, asked)
    print(found.as_json() if as_json else table(found))
    return 1 if found.findings else 0


def main(words: list[str] | None = None) -> int:
    """Run one command; ``words`` None: those of the command line. Returns the exit code."""
    try:
        given = build_parser().parse_args(words)
        return {"plan": plan, "families": families, "write": write, "check": check, "explain": explain}[given.command](
            given
        )
    except (SpecError, OSError) as error:
        message = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        print(f"error: {message}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
