"""Many runs of the pipeline: cases × seeds as DVC experiments, and searches with Optuna."""
