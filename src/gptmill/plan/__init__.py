"""What a run will cost before it runs: memory, steps, minutes and disk, stage by stage.

The formulas are code, and each says where it is from. Nothing is downloaded; what cannot be known
is assumed and said. `docs/plan.md` compares plans with what was measured. `whole.make_plan` is the
way in; this file imports nothing, so that `probe` starts from an empty process.
"""
