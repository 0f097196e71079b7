"""Images that stand in for those of other projects where no registry can be reached."""
