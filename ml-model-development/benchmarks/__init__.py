"""Speed of the release bundle beside its peers, measured in the same run; targets stand in targets.yaml."""
