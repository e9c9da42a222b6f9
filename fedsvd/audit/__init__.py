"""The empirical audit: what an attacker can really tell of one client's examples, beside what is claimed."""
