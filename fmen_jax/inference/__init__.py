"""Pictures in, larger pictures out."""
