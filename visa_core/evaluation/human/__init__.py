"""Human evaluation: blind sheets, a local page to fill them in, win rates and agreement."""
