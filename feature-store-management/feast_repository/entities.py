"""What features are about. Keys are 64-bit integers, as the sources number them."""

from feast import Entity, ValueType

customer = Entity(
    name="customer",
    join_keys=["customer_id"],
    value_type=ValueType.INT64,
    description="A card holder.",
)
terminal = Entity(
    name="terminal",
    join_keys=["terminal_id"],
    value_type=ValueType.INT64,
    description="A card terminal of a merchant.",
)
subscriber = Entity(
    name="subscriber",
    join_keys=["subscriber_id"],
    value_type=ValueType.INT64,
    description="A subscriber of the telephone company.",
)
viewer = Entity(
    name="viewer",
    join_keys=["viewer_id"],
    value_type=ValueType.INT64,
    description="A person who rates movies.",
)
movie = Entity(
    name="movie",
    join_keys=["movie_id"],
    value_type=ValueType.INT64,
    description="A movie of the catalogue.",
)
