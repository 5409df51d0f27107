"""A Python file, parsed and never executed: its configuration objects, SageMaker calls, and names that are gone."""

from __future__ import annotations

import ast
from typing import Any

from course_utils.launch.explain import environment, python_imports, recognized, training_arguments
from course_utils.launch.explain.reading import Open, Reading, number
from course_utils.launch.spec import silent

CONFIGS = ("TrainingArguments", "Seq2SeqTrainingArguments")
ESTIMATORS = ("HuggingFace", "PyTorch")
TRAINERS = ("Trainer", "Seq2SeqTrainer", "SFTTrainer", "DPOTrainer", "GRPOTrainer", "RewardTrainer")
CHECKPOINTS = ("checkpoint_s3_uri", "checkpoint_config")


def explain(reading: Reading, text: str) -> None:
    """Add what ``text`` says; raises SyntaxError, ValueError or RecursionError where it is no Python."""
    reading.kind = "Python file"
    tree = ast.parse(text)
    constants = _constants(tree)
    imported = python_imports.explain(reading, tree)
    environment.judge(reading, _variables(tree, constants))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    runs = [node for node in calls if _is_config(_name(node.func), imported)]
    for node in calls:
        name = _name(node.func)
        if node in runs:  # several are stages of a project, which need not agree
            reading.run = str(runs.index(node) + 1) if len(runs) > 1 else ""
            training_arguments.judge(reading, _keywords(node, constants), name)
            reading.run = ""
        elif name == "ModelTrainer" or (name in ESTIMATORS and _is_estimator(node)):
            _sagemaker(reading, name, node, constants)
        elif name in ("Accelerator", "DeepSpeedPlugin", "FullyShardedDataParallelPlugin"):
            _accelerate(reading, name, _keywords(node, constants))
        _keywords_gone(reading, name, node, constants)


def _is_config(name: str, imported: dict[str, str]) -> bool:
    return name in CONFIGS or (name in recognized.OF_TRL and "trl" in imported.get(name, "trl"))


def _is_estimator(node: ast.Call) -> bool:
    return any(
        keyword.arg in ("entry_point", "instance_type", "instance_count", "distribution") for keyword in node.keywords
    )


def _name(function: ast.expr) -> str:
    """The last name of ``a.b.c(...)``; empty where there is none."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Names that are given one literal value in the whole file."""
    found: dict[str, list[Any]] = {}
    for node in ast.walk(tree):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name):
                found.setdefault(target.id, []).append(node.value)
    return {
        name: literal(values[0], {}) for name, values in found.items() if len(values) == 1 and values[0] is not None
    }


def literal(node: ast.expr, constants: dict[str, Any]) -> Any:
    """The value of a literal, of a name of one, or of a sum of numbers; anything else is ``Open``."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        values = zip(node.keys, node.values, strict=True)
        return {key.value: literal(value, constants) for key, value in values if isinstance(key, ast.Constant)}
    text = ast.unparse(node)[:100]
    return Open(text, (text,))


def _keywords(node: ast.Call, constants: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a call; ``**{...}`` is opened where it is literal."""
    found: dict[str, Any] = {}
    if node.args:
        found["output_dir"] = literal(node.args[0], constants)
    for keyword in node.keywords:
        value = literal(keyword.value, constants)
        if keyword.arg is not None:
            found[keyword.arg] = value
        elif isinstance(value, dict):
            found |= {str(key): inner for key, inner in value.items()}
    return found


def _keywords_gone(reading: Reading, name: str, node: ast.Call, constants: dict[str, Any]) -> None:
    for keyword in node.keywords:
        if cure := silent.KEYWORDS.get((name, keyword.arg)):
            reading.find("keyword-gone", tool=name, name=keyword.arg, cure=cure)
        if new := silent.OLD_KEYWORDS.get((name, keyword.arg)):
            reading.find("keyword-old", tool=name, name=keyword.arg, cure=new)
        if keyword.arg == "tokenizer" and (name in TRAINERS or name.endswith("Trainer")):
            reading.find("tokenizer-argument", tool=name)
        if keyword.arg == "trust_remote_code" and literal(keyword.value, constants) is True:
            reading.find("remote-code")


def _accelerate(reading: Reading, name: str, given: dict[str, Any]) -> None:
    """accelerate's own objects: what they say wins over the YAML."""
    given.pop("output_dir", None)  # a value without its name
    for key, value in given.items():
        reading.set(f"{name}.{key}", value, f"open: {value}" if isinstance(value, Open) else value, "accelerate")
    if name == "Accelerator":
        reading.know("precision", given.get("mixed_precision"), "mixed_precision")
        reading.know("accumulation", number(given.get("gradient_accumulation_steps")), "gradient_accumulation_steps")
    elif name == "DeepSpeedPlugin":
        stage = number(given.get("zero_stage"))
        reading.know("strategy", f"zero{stage}" if stage in (1, 2, 3) else None, "zero_stage")
    else:
        version = number(given.get("fsdp_version", 1))
        reading.know("strategy", None if isinstance(version, Open) else f"fsdp{version}", "fsdp_version")


def _variables(tree: ast.Module, constants: dict[str, Any]) -> dict[str, Any]:
    """What the file puts into os.environ: by item, setdefault or update."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Subscript):
            if _name(target.value) == "environ":
                found[str(literal(target.slice, constants))] = literal(node.value, constants)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if _name(node.func.value) != "environ":
                continue
            if node.func.attr == "setdefault" and len(node.args) == 2:
                found[str(literal(node.args[0], constants))] = literal(node.args[1], constants)
            elif node.func.attr == "update":
                given = literal(node.args[0], constants) if node.args else {}
                found |= {str(key): value for key, value in given.items()} if isinstance(given, dict) else {}
                found |= {word.arg: literal(word.value, constants) for word in node.keywords if word.arg}
    return found


def _sagemaker(reading: Reading, name: str, node: ast.Call, constants: dict[str, Any]) -> None:
    reading.kind = "SageMaker launch file"
    given = _keywords(node, constants)
    if node.args:
        given.pop("output_dir", None)
    tool = f"sagemaker {name}"
    nested = {key: _call(node, key) for key in ("compute", "distributed", "stopping_condition", "source_code")}
    for key, value in given.items():
        inner = nested.get(key)
        for part, written in _keywords(inner, constants).items() if inner is not None else [(None, value)]:
            label = f"{key}.{part}" if part else key
            reading.set(label, written, f"open: {written}" if isinstance(written, Open) else written, tool)
    compute = _keywords(nested["compute"], constants) if nested["compute"] is not None else given
    nodes = number(compute.get("instance_count"))
    reading.know("nodes", nodes, "instance_count")
    if nested["distributed"] is not None:
        each = number(_keywords(nested["distributed"], constants).get("process_count_per_node"))
        reading.know("processes_per_node", each, "process_count_per_node")
    is_new = name == "ModelTrainer"
    if ("stopping_condition" if is_new else "max_run") not in given:
        cure = "give `stopping_condition=StoppingCondition(max_runtime_in_seconds=...)`" if is_new else "give `max_run`"
        reading.find("sagemaker-time-limit", tool=name, default="one hour" if is_new else "one day", cure=cure)
    if isinstance(nodes, int) and nodes > 1 and ("distributed" if is_new else "distribution") not in given:
        cure = "`distributed=Torchrun()`" if is_new else '`distribution={"torch_distributed": {"enabled": True}}`'
        reading.find("sagemaker-alone", nodes=nodes, cure=f"give {cure}")
    spot = given.get("use_spot_instances") is True or compute.get("enable_managed_spot_training") is True
    if spot and not any(key in given for key in CHECKPOINTS):
        reading.find("sagemaker-spot-no-checkpoint")
    if is_new:
        _unknown(reading, name, given)
    if isinstance(given.get("environment"), dict):
        environment.judge(reading, given["environment"])
    hyperparameters = given.get("hyperparameters")
    if isinstance(hyperparameters, dict) and recognized.is_trainer(hyperparameters):
        training_arguments.judge(reading, hyperparameters, may_be_others=True)


def _call(node: ast.Call, keyword: str) -> ast.Call | None:
    found = next((one.value for one in node.keywords if one.arg == keyword), None)
    return found if isinstance(found, ast.Call) else None


def _unknown(reading: Reading, name: str, given: dict[str, Any]) -> None:
    """Keywords that ModelTrainer refuses; the accepted ones are those of the check's stand-in."""
    from course_utils.launch.check.stand_ins import ACCEPTED

    accepted = set(ACCEPTED["sagemaker.train.ModelTrainer"].split())
    moved = {"instance_type": "compute", "instance_count": "compute", "entry_point": "source_code"}
    moved |= {"source_dir": "source_code", "image_uri": "training_image", "distribution": "distributed"}
    moved |= {"max_run": "stopping_condition"}
    for key in given:
        if key not in accepted:
            cure = f"say it in `{moved[key]}=`" if key in moved else "delete it"
            reading.find("sagemaker-unknown-keyword", tool=name, name=key, cure=cure)
