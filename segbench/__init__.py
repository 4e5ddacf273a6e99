"""segbench: the instrument for semantic segmentation. Importing it is light; torch comes with the work."""

__version__ = "0.1.0"
