#!/bin/sh
# Makes a git repository of workspace/, with a release and some changes since. A repository cannot be kept inside another.
set -eu
cd -- "$(dirname -- "$0")/workspace"
git init --quiet --initial-branch=main .
git config user.name "Ada Byron"
git config user.email ada@example.org
git config commit.gpgSign false

commit() {
    git add --all
    git commit --quiet --message "$1"
}

commit "Release 1.2.0"
git tag v1.2.0
sed -i 's/return total(orders) \/ len(orders)/return total(orders) \/ len(orders) if orders else 0/' orders.py
commit "The average of no orders is 0, not an error (#41)"
sed -i 's/for order in orders)$/for order in orders if not order.get("deleted"))/' orders.py
commit "A deleted order no longer counts in totals (#43)"
sed -i 's/Orders of a shop\./Orders of one shop./' orders.py
commit "chore: a word in a comment (#44)"
sed -i "s/def export(orders):/def export(orders, *, separator):/; s/{order\['id'\]} {/{order['id']}{separator}{/" orders.py
commit "BREAKING: export() is told the separator (#45)"
git log --oneline
