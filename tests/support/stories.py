"""Short stories from a grammar of our own: an endless, original text (Apache-2.0) with rules a small model can learn.

Names, places and things recur within a story and its sentences depend on each other, so a model has something to gain
from its context; choices are weighted, so the text keeps an entropy no model can go below.
"""

from __future__ import annotations

import random

PEOPLE = {
    "Mira": "she", "Tobias": "he", "Anouk": "she", "Henrik": "he", "Salome": "she", "Basil": "he", "Greta": "she",
    "Ruben": "he", "Ottilie": "she", "Casper": "he",
}  # fmt: skip
TRADES = {
    "baker": ("bread", "oven"), "gardener": ("roses", "greenhouse"), "clockmaker": ("clocks", "workbench"),
    "fisher": ("nets", "boat"), "teacher": ("letters", "desk"), "smith": ("horseshoes", "anvil"),
    "weaver": ("blankets", "loom"), "painter": ("pictures", "easel"),
}  # fmt: skip
PLACES = (
    "village by the river",
    "town on the hill",
    "harbour in the north",
    "hamlet behind the forest",
    "city of bridges",
)
WEATHER = {"rain": "wet", "snow": "white", "fog": "grey", "sun": "warm", "wind": "cold"}
ANIMALS = {"dog": "barked", "cat": "purred", "goat": "bleated", "crow": "croaked", "horse": "snorted"}
THINGS = ("lantern", "key", "map", "silver coin", "red umbrella", "broken watch", "sealed letter", "wooden flute")
HIDING = ("under the bridge", "behind the mill", "in the old well", "below the stairs", "inside a hollow tree")
FEELINGS = {"glad": "laughed", "sad": "wept", "angry": "shouted", "tired": "yawned", "curious": "whistled"}
NUMBERS = ("two", "three", "four", "five", "six", "seven")


def story(seed: int) -> str:
    """The story of this number: always the same text, some six hundred characters."""
    draw = random.Random(f"effillm story {seed}")
    hero, friend = draw.sample(sorted(PEOPLE), 2)
    trade = draw.choice(sorted(TRADES))
    goods, tool = TRADES[trade]
    place, thing, hiding = draw.choice(PLACES), draw.choice(THINGS), draw.choice(HIDING)
    weather, animal = draw.choice(sorted(WEATHER)), draw.choice(sorted(ANIMALS))
    he, his = PEOPLE[hero], {"he": "his", "she": "her"}[PEOPLE[hero]]
    feeling, number = draw.choice(sorted(FEELINGS)), draw.choice(NUMBERS)
    opening = draw.choice((
        f"{hero} was a {trade} in a {place}.",
        f"In a {place} there lived a {trade} whose name was {hero}.",
        f"Everybody in the {place} knew {hero} the {trade}.",
    ))  # fmt: skip
    work = draw.choice((
        f"Every morning {he} made {goods} at {his} {tool}, and {his} {animal} {ANIMALS[animal]} beside the {tool}.",
        f"{he.capitalize()} had a {animal} that {ANIMALS[animal]} whenever {he} went to {his} {tool}.",
    ))  # fmt: skip
    day = draw.choice((
        f"One day the {weather} came, and the whole {place.split()[0]} was {WEATHER[weather]}.",
        f"On a {WEATHER[weather]} morning, when there was nothing but {weather}, {hero} went out.",
    ))  # fmt: skip
    find = draw.choice((
        f"{hero} found a {thing} {hiding}.",
        f"{hiding.capitalize()} {he} saw a {thing}, and {he} took it home.",
        f"The {animal} ran away, and when {hero} found it {hiding} it had a {thing}.",
    ))  # fmt: skip
    talk = draw.choice((
        f'"Whose {thing} is this?" asked {hero}. "It is mine," said {friend}, "I lost it {hiding} {number} days ago."',
        f'{friend} said: "I will give you {number} coins for the {thing}." "No," said {hero}, "I want to keep the {thing}."',
        f'"Look what I found {hiding}," said {hero}. "A {thing}!" said {friend}. "We must show it to the {draw.choice(sorted(TRADES))}."',
    ))  # fmt: skip
    ending = draw.choice((
        f"{friend} was {feeling} and {FEELINGS[feeling]}, and {hero} went back to {his} {tool} and made {goods}.",
        f"So {hero} gave the {thing} to {friend}, who was {feeling} and {FEELINGS[feeling]} for {number} days.",
        f"Since then the {thing} lies beside the {tool}, and the {animal} sleeps next to it.",
    ))  # fmt: skip
    return " ".join((opening, work, day, find, talk, ending))


def stories(first: int, count: int) -> str:
    """`count` stories from number `first` on, a paragraph each."""
    return "\n\n".join(story(seed) for seed in range(first, first + count))
