"""Orders of a shop."""


def total(orders):
    """The sum of all orders, in cents."""
    return sum(order["cents"] for order in orders)


def average(orders):
    """What an order comes to, in cents."""
    return total(orders) / len(orders)


def export(orders):
    """All orders as text, one a line."""
    return "\n".join(f"{order['id']} {order['cents']}" for order in orders)
