"""Behaviour-regularized policy optimization from fixed data sets."""


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib import metadata  # every start of a command imports this file

        return metadata.version("brpo")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
