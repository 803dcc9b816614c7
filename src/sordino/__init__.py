"""sordino: smaller audio language models, same voice. See README.md."""

__version__ = "0.1.0"
