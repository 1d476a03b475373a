"""Linear assignment: which row belongs to which column, one to one, at the smallest sum of costs.

Remote code can count on no library that has this.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def assign(costs: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """The column of each row in the assignment of least cost: (N, N) finite -> (N,).

    Rows are added one by one, each along the shortest path of reassignments (Crouse, IEEE Transactions on Aerospace
    and Electronic Systems 52(4), 2016). A row whose cheapest column is free takes one step, so that costs which are
    lowest near the diagonal take N steps of N operations; N^2 steps are the bound.
    """
    size = len(costs)
    column_of_row, row_of_column = np.full(size, -1), np.full(size, -1)
    row_prices, column_prices = np.zeros(size), np.zeros(size)
    for new_row in range(size):
        lengths = np.full(size, np.inf)  # of the shortest path to each column
        row_before = np.full(size, new_row)  # the last row on that path
        reached = np.zeros(size, dtype=bool)  # columns whose path is final
        row, length = new_row, 0.0
        rows = []
        while row >= 0:
            rows.append(row)
            through_row = length + costs[row] - row_prices[row] - column_prices
            shorter = ~reached & (through_row < lengths)
            lengths[shorter], row_before[shorter] = through_row[shorter], row
            column = int(np.where(reached, np.inf, lengths).argmin())
            length, reached[column] = lengths[column], True
            row = int(row_of_column[column])  # -1 where the column is free
        old_rows = rows[1:]
        row_prices[new_row] += length
        row_prices[old_rows] += length - lengths[column_of_row[old_rows]]
        column_prices[reached] -= length - lengths[reached]
        while row != new_row:  # take the columns along the path
            row = int(row_before[column])
            row_of_column[column] = row
            column_of_row[row], column = column, int(column_of_row[row])
    return column_of_row
