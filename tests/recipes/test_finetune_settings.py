"""``finetune``'s arguments: every number has a range, nothing is ignored in silence, YAML is read like flags."""

import dataclasses
import json
import typing

import pytest
from transformers import TrainingArguments

from course_utils.recipes import finetune
from course_utils.recipes.finetune_ranges import RANGES
from tests.recipes.refused import refusal


@pytest.fixture
def files(tmp_path):
    """A model's folder without weights and files of rows: what is refused is refused before they are read."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}")
    return tmp_path


def settings(files, *arguments, task="causal_lm"):
    always = [f"--task={task}", f"--model_name_or_path={files}/model", "--use_cpu", f"--output_dir={files}/out"]
    return finetune.read_settings([*always, *arguments])


def numbers(kind):
    """Whether a field's type is a number, perhaps None."""
    kinds = set(typing.get_args(kind)) or {kind}
    return bool(kinds & {int, float}) and kinds <= {int, float, type(None)}


def test_every_number_of_training_arguments_has_a_range():
    hints = typing.get_type_hints(TrainingArguments)
    wanted = {field.name for field in dataclasses.fields(TrainingArguments) if numbers(hints[field.name])}
    assert wanted == set(RANGES)


@pytest.mark.parametrize("name", RANGES)
def test_a_number_out_of_its_range_is_one_sentence(name, files):
    for value in ("-7", "nan", "inf"):
        with pytest.raises(ValueError, match=name) as caught:
            settings(files, f"--{name}={value}")
        sentence = str(caught.value)
        assert "\n" not in sentence
        assert "allowed: a" in sentence or f"invalid int value: {value!r}" in sentence


BAD = [
    ("--max_steps=0", "max_steps=0 is out of range; allowed: a whole number >= 1, or -1 for num_train_epochs"),
    ("--num_train_epochs=0", "num_train_epochs=0.0 is out of range; allowed: a number > 0"),
    ("--per_device_train_batch_size=0", "allowed: a whole number >= 1"),
    ("--gradient_accumulation_steps=0", "allowed: a whole number >= 1"),
    ("--adam_beta1=1", "adam_beta1=1.0 is out of range; allowed: a number >= 0 and < 1"),
    ("--seed=4294967296", "allowed: a whole number >= 0 and <= 4294967295"),
    ("--save_total_limit=1", "save_total_limit=1 is out of range; allowed: a whole number >= 2"),
    ("--max_length=1", "max_length=1 is out of range"),
    ("--lora_r=0", "lora_r=0 is out of range"),
    ("--lora_dropout=nan", "lora_dropout=nan is out of range"),
    ("--task=poetry", "invalid choice: 'poetry'"),
    ("--resume=perhaps", "resume='perhaps' is not known; allowed: true, false, adapt"),
    ("--no_such_flag", "--no_such_flag"),
    ("--train_file=none.jsonl", "train_file='none.jsonl' is no such file"),
    ("--eval_file=none.jsonl", "needs --train_file"),
    ("--model_name_or_path=./nowhere", "has no config.json"),
    ("--model_name_or_path=course/encoder", "does not fit task='causal_lm'; allowed: 'course/causal'"),
    ("--deepspeed=none.json", "none.json"),
    ("--fsdp --fsdp_config=none.json", "fsdp_config='none.json' cannot be read"),
    ("--fsdp --fsdp_config={", "fsdp_config='{' is no JSON"),
    ("--output_dir=", "output_dir='' is empty"),
    # numbers that no library goes on with
    ("--max_length=99999999999999999999", "allowed: a whole number >= 2 and <= 2147483647"),
    (f"--gradient_accumulation_steps=1{'0' * 400}", "gradient_accumulation_steps=1000"),
    ("--neftune_noise_alpha=1e308", "neftune_noise_alpha=1e+308 is out of range; allowed: a number >= 0 and <= 1e+30"),
    ("--dataloader_num_workers=5000", "allowed: a whole number >= 0 and <= 1024"),
    (f"--train_file={'0' * 300}.jsonl", "train_file='000"),
    # what Trainer would find out in the middle of its start
    ("--deepspeed=0", "deepspeed='0' cannot be read"),
    ('--deepspeed={"zero_optimization":3}', "deepspeed: zero_optimization=3 is no object"),
    ('--accelerator_config={"a":1}', "accelerator_config: 'a' is not known; allowed: split_batches"),
    ('--accelerator_config={"split_batches":"x"}', "accelerator_config: split_batches='x' is out of range"),
    ('--accelerator_config={"gradient_accumulation_kwargs":{"num_steps":0}}', "contradicts gradient_accumulation_st"),
    ("--lr_scheduler_kwargs=1", "lr_scheduler_kwargs='1' is no object"),
    ('--lr_scheduler_kwargs={"a":1}', "lr_scheduler_type='linear' with lr_scheduler_kwargs={'a': 1} cannot be used"),
    ("--lr_scheduler_type=warmup_stable_decay", "num_decay_steps"),
    ('--lr_scheduler_type=polynomial --lr_scheduler_kwargs={"power":"x"}', "lr_scheduler_type='polynomial' with"),
    ("--optim=lomo", "optim='lomo' with optim_args=None cannot be used (You need to install `lomo_optim`"),
    ("--optim_args=x", "with optim_args='x' cannot be used"),
    ("--optim_args=a=1", "reads no optim_args"),
    ('--gradient_checkpointing_kwargs={"a":1}', "gradient_checkpointing_kwargs: 'a' is not known"),
    ("--use_liger_kernel", "needs the package liger-kernel"),
    ("--dataloader_persistent_workers", "dataloader_persistent_workers=True is read by nothing"),
    # flags that nothing would read
    ("--fp16", "fp16=True is read by nothing on a CPU"),
    ("--do_predict", "do_predict=True is read by nothing"),
    ("--do_eval", "do_eval=True is read by nothing"),
    ("--lora_r=4", "lora_r=4 is read by nothing here; allowed: with --use_peft"),
    ("--dataset_config=x", "allowed: with --dataset_name"),
    ("--metric_for_best_model=bleu", "metric_for_best_model='bleu' is not known; allowed for causal_lm: loss"),
    ("--metric_for_best_model=accuracy", "allowed for causal_lm: loss"),
    ("--report_to=nobody", "report_to='nobody' is not installed here, or not known"),
    ("--report_to=wandb", "report_to='wandb' finds no key; allowed: WANDB_API_KEY"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_what_cannot_be_used_is_one_sentence(arguments, words, files, monkeypatch):
    monkeypatch.setenv("NETRC", str(files / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises((ValueError, OSError)) as caught:
        settings(files, *arguments.split())
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_smoothing_is_refused_where_the_loss_is_the_programs_own(files):
    assert settings(files, "--label_smoothing_factor=0.1")[1].label_smoothing_factor == 0.1
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1 is read by nothing in task='classification'"):
        settings(files, "--label_smoothing_factor=0.1", task="classification")
    assert settings(files, "--metric_for_best_model=eval_macro_f1", task="classification")


def test_data_that_would_not_be_read_is_refused(files):
    rows = f"--train_file={files}/rows.jsonl"
    with pytest.raises(ValueError, match="contradicts dataset_name"):
        settings(files, rows, "--dataset_name=somebody/something")
    with pytest.raises(ValueError, match="source='hub' is read by nothing here"):
        settings(files, rows, "--source=hub")
    with pytest.raises(ValueError, match="eval_file=.* is read by nothing; allowed: with --eval_strategy"):
        settings(files, rows, f"--eval_file={files}/rows.jsonl")
    assert settings(files, rows, f"--eval_file={files}/rows.jsonl", "--eval_strategy=steps", "--eval_steps=5")


def test_a_refused_run_writes_nothing_and_ends_with_code_2(files, capsys):
    always = ["--use_cpu", f"--output_dir={files}/runs/one", "--task=causal_lm", f"--model_name_or_path={files}/model"]
    before = sorted(files.rglob("*"))
    assert "max_steps=0" in refusal(capsys, lambda: finetune.main([*always, "--max_steps=0"]))
    refusal(capsys, lambda: finetune.main([*always, f"--train_file={files}/rows.jsonl"]))  # an empty config.json
    assert sorted(files.rglob("*")) == before


def test_fsdp_saves_shards_unless_told_otherwise(files):
    def kind(*arguments):
        return settings(files, "--fsdp", *arguments)[1].fsdp_plugin_args["state_dict_type"]

    assert kind() == "SHARDED_STATE_DICT"
    assert kind('--fsdp_config={"version": 2}') == "SHARDED_STATE_DICT"
    assert kind('--fsdp_config={"state_dict_type": "FULL_STATE_DICT"}') == "FULL_STATE_DICT"
    (files / "fsdp.json").write_text(json.dumps({"fsdp_state_dict_type": "FULL_STATE_DICT"}))
    assert kind(f"--fsdp_config={files}/fsdp.json") == "FULL_STATE_DICT"


def test_a_yaml_file_is_read_like_flags_and_the_folder_says_what_runs(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: runs/{run}\ntask: causal_lm\nmodel_name_or_path: course/causal\nuse_peft: true\n"
                    "learning_rate: 2.0e-4\nuse_cpu: true\n")  # fmt: skip
    flags = ["--output_dir=runs/{run}", "--task=causal_lm", "--model_name_or_path=course/causal", "--use_peft"]
    settings = [finetune.read_settings(given) for given in ([str(file)], [*flags, "--learning_rate=2e-4", "--use_cpu"])]
    assert settings[0][0] == settings[1][0]
    assert [args.output_dir for _, args in settings] == ["runs/causal_lora16_lr0.0002_b8x1_seed42"] * 2
    file.write_text("output_dir: o\nlerning_rate: 1\n")
    with pytest.raises(ValueError, match="lerning_rate"):
        finetune.read_settings([str(file)])


def test_yaml_keeps_types_and_says_what_it_cannot_read(tmp_path):
    file = tmp_path / "run.yaml"
    always = "output_dir: o\ntask: causal_lm\nmodel_name_or_path: course/causal\nuse_cpu: true\n"
    file.write_text(
        always + "learning_rate: 1e-3\nresume: false\nuse_peft: true\nlora_target_modules: [q_proj, v_proj]\n"
    )
    config, args = finetune.read_settings([str(file)])
    assert args.learning_rate == 1e-3  # which YAML takes for text
    assert (config.resume, config.lora_target_modules) == ("false", ["q_proj", "v_proj"])
    for text, words in (
        (always + "max_steps: ten\n", "argument --max_steps.*: invalid int value"),
        (always + "max_steps: 0\n", "max_steps=0 is out of range"),
        ("- output_dir\n", "is no list of settings"),
        ("a: [\n", "is no YAML"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            finetune.read_settings([str(file)])
    with pytest.raises(ValueError, match="none.yaml cannot be read: No such file"):
        finetune.read_settings(["none.yaml"])
