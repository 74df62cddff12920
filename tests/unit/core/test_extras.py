"""The error for a package whose extra is not installed."""

import pytest

from detect_ai.core.errors import InputError, MissingExtraError
from detect_ai.core.extras import required


def test_missing_package_names_the_extra():
    message = r"no_such_package\b.*pip install 'detect-ai\[serve\]'"
    with pytest.raises(MissingExtraError, match=message) as error, required("serve"):
        import no_such_package.part  # noqa: F401
    assert isinstance(error.value, InputError)
    assert isinstance(error.value, ImportError)


def test_missing_module_of_ours_is_a_mistake_of_ours():
    with pytest.raises(ModuleNotFoundError, match=r"detect_ai\.no_such_module"), required("local"):
        import detect_ai.no_such_module  # noqa: F401
