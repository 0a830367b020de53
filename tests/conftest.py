import pytest


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The file of a user's network, small enough for studies in seconds. Not to be written to."""
    from tests.helpers import user_network  # here, for tests that need no TensorFlow

    path = tmp_path_factory.mktemp("models") / "mine.keras"
    user_network().save(path)
    return path
