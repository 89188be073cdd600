"""Studies: what is asked, the ledger of runs, the scheduler and executors that compute what is missing."""
