"""What flows through Beamtag and what happens to it; importable on its own, knows no flags."""
