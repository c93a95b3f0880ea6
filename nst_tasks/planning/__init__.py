"""Everything that is decided before any compute: inspection, triage, plan, inbox."""
