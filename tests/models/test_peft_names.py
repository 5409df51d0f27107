"""``new_name``: PEFT wraps a model without a deprecation, and the old name speaks up again afterwards."""

import warnings

import pytest

from course_utils.models.peft_names import new_name
from course_utils.parallel import reference


def test_peft_wraps_a_model_without_a_warning():
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=2, target_modules=["q_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        with new_name():
            assert get_peft_model(reference.new_model(), settings)
        with pytest.raises(FutureWarning, match="is_gradient_checkpointing"):  # should it pass one day, this can go
            get_peft_model(reference.new_model(), settings)
