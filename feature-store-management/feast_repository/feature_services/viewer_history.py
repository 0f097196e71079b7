"""What a recommending service reads: the viewer's history."""

from contract_definitions import feature_service
from feature_views.viewer_history import viewer_history

viewer_history_v1 = feature_service(
    "viewer_history_v1",
    {"viewer_history": viewer_history},
    "The movies a viewer has rated, from what was known strictly before the request.",
)
