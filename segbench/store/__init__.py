"""What is kept: `.segbench/` for what is large and can be made again, `results/` for what is small. No torch."""
