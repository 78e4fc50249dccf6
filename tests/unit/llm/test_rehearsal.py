import pytest

from llm.rehearsal import rehearsal_prompt_limit
from llm.settings import TextTask


@pytest.mark.parametrize(
    ("steps", "max_prompts", "expected"),
    [(10, None, 20), (10, 5, 5), (10, 50, 20), (None, None, None), (None, 5, 5)],
)
def test_prompt_limit_is_at_most_max_prompts_and_the_rehearsal_rows_of_the_run(
    steps: int, max_prompts: int, expected: int
) -> None:
    task = TextTask.model_validate(
        {
            "model": "embedded",
            "data": {"files": ["data.jsonl"], "pack": False},
            "optim": {"steps": steps, "epochs": None if steps else 1, "micro_batch": 2, "accumulate": 1},
            "rehearsal": {"max_prompts": max_prompts, "ratio": 1.0},
        }
    )
    assert rehearsal_prompt_limit(task.rehearsal, task.optim, task.data.pack, processes=2) == expected
