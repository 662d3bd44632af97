"""Options of all recipes of recommenders: ratings, split and columns."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from kgen.arguments import NonNegativeFloat, PositiveInt, ProperFraction
from kgen.recipes.recipe import Recipe, Source, option, setting
from kgen.recipes.records import titles_by_id

NUM_SHOWN = 5  # users, and items of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecommenderRecipe(Recipe):
    """A recipe whose data are ratings and whose model recommends items to users."""

    evaluations = ("evaluate_recommender",)

    data: Source = setting(
        "movielens/100k-ratings",
        "Ratings: a file, folder or zip (MovieLens as published; any CSV or Parquet of "
        "user, item, rating, time), or a name of tensorflow-datasets.",
    )
    min_rating: NonNegativeFloat = option(
        4.0, "Lowest rating that counts as liked; 0: every pair counts."
    )
    min_items: PositiveInt = option(
        5, "Fewest liked items of a user; others are left out."
    )
    split_strategy: Literal["strong", "leave-one-out", "random", "held-out-items"] = (
        option(
            "strong",
            "Data held out: users, each user's last items, random pairs, or items.",
        )
    )
    held_out_users: PositiveInt | None = option(
        None, "Users in validation and in test, for strong; default: a tenth."
    )
    hidden_fraction: ProperFraction = option(
        0.2, "Share of a held-out user's items (of all pairs, for random) to predict."
    )
    columns: str | None = option(
        None,
        "Names of the columns of user, item, rating, time, as A,B; default: usual.",
    )

    def open_data(self, *, download: bool = True) -> Any:
        """Opens the ratings; `seed` keys the split."""
        from kgen.data import open_ratings

        return self.call(
            open_ratings,
            self.data,
            min_rating=self.min_rating or None,
            columns=self.columns.split(",") if self.columns else None,
            download=download,
        )

    def sample(self, model: Any, data: Any) -> str:
        """Lists items of the first validation users, and their recommendations."""
        history = data.history("validation")[:NUM_SHOWN]
        histories = [data.item_ids[row.indices] for row in history]
        best = model.recommend(histories, k=min(NUM_SHOWN, data.num_items))
        lines = []
        for user, items, recommended in zip(
            data.user_rows("validation"), histories, best.item_ids, strict=False
        ):
            lines.append(f"user {data.user_ids[user]}, {len(items)} items")
            shown = titles(data, items[:NUM_SHOWN])
            lines += [f"  liked        {title}" for title in shown]
            lines += [f"  recommended  {title}" for title in titles(data, recommended)]
        return "\n".join(lines) + "\n"

    def model_options(self, data: Any, steps_per_epoch: int) -> dict[str, Any]:
        """Returns the items and their counts."""
        counts = data.item_counts().tolist()
        return {"item_ids": data.item_ids.tolist(), "item_counts": counts}


def titles(data: Any, item_ids: Any) -> list[str]:
    """Returns a line for each item: its id, and its title if it has one."""
    known = titles_by_id(data) or {}
    return [f"{item}  {known.get(str(item), '')}".rstrip() for item in item_ids]
