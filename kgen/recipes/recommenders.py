"""What the recipes of recommenders share: their ratings, and a look at lists."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from kgen.recipes.recipe import Recipe, option

NUM_SHOWN = 5  # people, and as many items of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecommenderRecipe(Recipe):
    """A recipe whose data are ratings and whose model recommends items to people."""

    task: ClassVar[str] = "items"
    next_command: ClassVar[str] = "kgen recommend {run} --items ID,ID,ID -k 10"

    data: str = option(
        "movielens/100k-ratings",
        "Ratings: a file, folder or zip (MovieLens as published; any CSV or Parquet of "
        "user, item, rating, time), or a name of tensorflow-datasets.",
        affects_training=False,
        is_path=True,
    )
    min_rating: float = option(
        4.0, "Lowest rating of an item that somebody likes; 0: every pair counts."
    )
    min_items: int = option(5, "Liked items that a person must have, 1 or more.")
    split_strategy: Literal["strong", "leave-one-out", "random", "held-out-items"] = (
        option(
            "strong",
            "Data held out: users, each user's last items, random pairs, or items.",
        )
    )
    held_out_users: int | None = option(
        None, "People in validation and in test, for strong; default: a tenth."
    )
    hidden_fraction: float = option(
        0.2, "Share of a held-out person's items (of all pairs, for random) to find."
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
        """Items of the first validation people, and what they are recommended."""
        history = data.history("validation")[:NUM_SHOWN]
        histories = [data.item_ids[row.indices] for row in history]
        best = model.recommend(histories, k=min(NUM_SHOWN, data.num_items))
        lines = []
        for user, has, gets in zip(
            data.user_rows("validation"), histories, best.item_ids, strict=False
        ):
            lines.append(f"user {data.user_ids[user]}, {len(has)} items")
            lines += [f"  has   {title}" for title in titles(data, has[:NUM_SHOWN])]
            lines += [f"  gets  {title}" for title in titles(data, gets)]
        return "\n".join(lines) + "\n"

    def evaluate(
        self,
        model: Any,
        data: Any,
        *,
        split: str = "test",
        limit: int | None = None,
        progress: Any = None,
        **options: Any,
    ) -> list[Any]:
        """Measures lists beside those of baselines; see `evaluate_recommender`.

        Args:
            model: The model.
            data: What `open_data` returned.
            split: "test" or "validation".
            limit: Only the first people, this many.
            progress: Called with the number of people done, and their total.
            **options: Of other models alone: not used here.
        """
        from kgen.evaluation import evaluate_recommender

        return evaluate_recommender(
            model, data, split=split, limit=limit, seed=self.seed, progress=progress
        )

    def item_options(self, data: Any) -> dict[str, Any]:
        """Returns arguments of every recommender, from the data: its items."""
        return {
            "item_ids": data.item_ids.tolist(),
            "item_counts": data.item_counts().tolist(),
            "dtype": self.dtype(),
        }


def titles(data: Any, item_ids: Any) -> list[str]:
    """A line for each item: its id, and its title where there is one."""
    if data.item_titles is None:
        return [str(item) for item in item_ids]
    known = dict(zip(data.item_ids.tolist(), data.item_titles, strict=True))
    return [f"{item}  {known.get(item, '')}".rstrip() for item in item_ids]
