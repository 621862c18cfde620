"""The tests on hosts that this machine is not: guests, booted for one run."""
