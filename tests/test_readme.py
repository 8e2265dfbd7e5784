import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.strip().splitlines()[0])
def test_the_code_of_the_readme_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_readme_names_only_settings_and_members_that_exist():
    conf = Path(__file__).parents[1] / "conf"
    for group, member in re.findall(r"\b(model|dataset|schedule|experiment)=([a-z]\w*)", README):
        file = f"{group}/{member}.yaml"
        assert (conf / file).is_file() or f"# conf/{file}" in README, f"{group}={member}"
