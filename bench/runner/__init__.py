"""From the settings of a run to its records: spec, plan, execute, worker."""
