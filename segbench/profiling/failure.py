"""What went wrong with a model, in one line of words. No torch here: its errors are known by name and text."""

MEMORY_ERRORS = ("OutOfMemoryError", "MemoryError")
# Allocators say it each in their own way: the CPU's of PyTorch, CUDA's, cuBLAS's and cuDNN's.
MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "std::bad_alloc")


def in_words(error: BaseException) -> str:
    """One line: `out of memory (...)`, the text of the error, or its type where it has no text."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    kind = type(error).__name__
    if kind in MEMORY_ERRORS or any(word in str(error).lower() for word in MEMORY_WORDS):
        return f"out of memory ({first})" if first else "out of memory"
    return f"{kind}: {first}" if first else kind
