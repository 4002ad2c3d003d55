"""Many pruned voices measured against one original: grids, the folder they are kept in, curves, knees and sensitivities."""
