"""Everything round the trainings of one folder: recipes, `plan` (a recipe resolved), `folder`, `run` (its stages);
before the first step `prepare`, `preflight`, `initial`, `inherit`, `changes` and `precision`.
"""
