"""What a person launches: flags in, a graph out, one file per job."""
