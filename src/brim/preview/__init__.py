"""What the data of a task is, before anything is paid for: sizes, lengths, bad rows, examples."""

from brim.preview.preview import DataConfig, Limits, Preview, Shown, SplitPreview, preview
from brim.preview.render import as_text

__all__ = ["DataConfig", "Limits", "Preview", "Shown", "SplitPreview", "as_text", "preview"]
