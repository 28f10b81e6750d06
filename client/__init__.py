"""Inside the hospital: the site agent, its policy, its cohort and its ledger, and the stub that Flower runs."""
