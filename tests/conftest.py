import gc
import logging

import hypothesis
import pytest

# How long an example takes says nothing where several processes share the cores.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


def pytest_configure(config):
    """Has TensorFlow imported quietly in the processes that run tests, so that pytest's summary is the last word."""
    if hasattr(config, "workerinput"):
        from tfprune.support.startup import import_tensorflow

        import_tensorflow()
        gc.freeze()  # a million objects that stay need not be looked through whenever garbage is collected


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The file of a user's network, small enough for studies in seconds. Not to be written to."""
    from tests.helpers import user_network  # here, for tests that need no TensorFlow

    path = tmp_path_factory.mktemp("models") / "mine.keras"
    user_network().save(path)
    return path


class _NotTransformed(logging.Handler):
    """Keeps what TensorFlow logs of functions that AutoGraph left as they are."""

    def __init__(self):
        super().__init__()
        self.told = []

    def emit(self, record):
        message = record.getMessage()
        # What a page of the documents defines has no source that could be found.
        if "AutoGraph could not transform" in message and "Unable to locate the source code" not in message:
            self.told.append(message)


@pytest.fixture(autouse=True)
def autograph_transforms_all():
    """A test fails where AutoGraph gave up a function: its loops and conditions would be of Python, run once."""
    handler, logger = _NotTransformed(), logging.getLogger("tensorflow")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert not handler.told, handler.told
