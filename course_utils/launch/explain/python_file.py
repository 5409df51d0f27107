"""A Python file, parsed and never executed: its configuration objects, SageMaker calls, and names that are gone."""

from __future__ import annotations

import ast
from typing import Any

from course_utils.launch.explain import training_arguments
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
    imported = _imports(reading, tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _name(node.func)
        if name in CONFIGS or (name.endswith("Config") and "trl" in imported.get(name, "trl") and _is_trl(name)):
            training_arguments.judge(reading, _keywords(node, constants), name)
        elif name == "ModelTrainer" or (name in ESTIMATORS and _is_estimator(node)):
            _sagemaker(reading, name, node, constants)
        _keywords_gone(reading, name, node, constants)


def _is_trl(name: str) -> bool:
    return name in ("SFTConfig", "DPOConfig", "GRPOConfig", "RewardConfig", "KTOConfig", "RLOOConfig")


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


def _imports(reading: Reading, tree: ast.Module) -> dict[str, str]:
    """Imported name -> module; names that are gone are found."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found[alias.asname or alias.name] = node.module
                if cure := silent.IMPORTS.get((node.module, alias.name)):
                    reading.find("import-gone", name=f"{node.module}.{alias.name}", cure=cure)
    return found


def _keywords_gone(reading: Reading, name: str, node: ast.Call, constants: dict[str, Any]) -> None:
    for keyword in node.keywords:
        if cure := silent.KEYWORDS.get((name, keyword.arg)):
            reading.find("keyword-gone", tool=name, name=keyword.arg, cure=cure)
        if keyword.arg == "tokenizer" and (name in TRAINERS or name.endswith("Trainer")):
            reading.find("tokenizer-argument", tool=name)
        if keyword.arg == "trust_remote_code" and literal(keyword.value, constants) is True:
            reading.find("remote-code")


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
    hyperparameters = given.get("hyperparameters")
    if isinstance(hyperparameters, dict) and training_arguments.is_trainer(hyperparameters):
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
