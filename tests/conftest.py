"""What all tests share."""

import gc


def pytest_collection_finish() -> None:
    # A million objects of torch and transformers, that each collection would look through again.
    gc.collect()
    gc.freeze()
