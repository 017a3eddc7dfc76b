"""The hand-written part of the tiny model's training text: greetings, and TideServe itself.

Each item is (phrasings of the question, answer). The words are the project's own.
"""
# ruff: noqa: RUF001

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a helpful assistant that explains Python.",
    "You answer questions about Python's standard library.",
    "Answer briefly.",
    "You are TideServe's tiny model.",
    "Be concise and friendly.",
)

_WHO = (
    "I am tide-tiny, the small language model that comes with TideServe. I have read the"
    " docstrings of Python's standard library and little else. Ask me about a function, a class"
    " or a module, such as str.split, json.dumps or itertools."
)

_TIDESERVE = (
    "TideServe serves language models on GPUs that come and go like a tide. Online and offline"
    " requests share one fleet of preemptible machines. When a machine is taken away, its"
    " requests move to another one and go on from the very next token, so that nothing is ever"
    " lost: not a request, not a token."
)

_DEATH = (
    "When a worker dies, the router notices it, picks another worker and sends it the prompt"
    " together with every token that was already written to the journal. The new worker goes on"
    " from the next token. The client sees a short pause in the stream and nothing else: no"
    " token is repeated, changed or skipped."
)

_TIDE_STORY = (
    "Once there was a harbour where the tide came in and went out twice a day. When the water"
    " was high, many boats could work; when it was low, only a few had water under the keel. The"
    " harbour master wrote every delivery in a book. Whenever a boat had to leave, another one"
    " read the book, took over the cargo and sailed on from the last line. The merchants never"
    " noticed which boat carried their goods, because nothing was ever lost and nothing was ever"
    " delivered twice. And so the harbour lived well with the tide."
)

_ALPHABET = "A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, Z."

# Foreign letters are meant: they split over several tokens.
_GREETINGS = (
    "Hello is bonjour in French, ¡hola! in Spanish, olá in Portuguese, cześć in Polish,"
    " γειά σου in Greek, привет in Russian, שלום in Hebrew, مرحبا in Arabic, नमस्ते in Hindi,"
    " 你好 in Chinese, こんにちは in Japanese and 안녕하세요 in Korean. A wave is understood"
    " everywhere: 👋🌊."
)

_ZEN = (
    "Beautiful is better than ugly.\nExplicit is better than implicit.\nSimple is better than"
    " complex.\nComplex is better than complicated.\nFlat is better than nested.\nSparse is"
    " better than dense.\nReadability counts.\nSpecial cases aren't special enough to break the"
    " rules.\nAlthough practicality beats purity.\nErrors should never pass silently.\nUnless"
    " explicitly silenced.\nIn the face of ambiguity, refuse the temptation to guess."
)

_EXAMPLE = (
    'Here is a small function:\n\ndef greet(name):\n    """Return a greeting for name."""\n'
    '    return f"Hello, {name}!"\n\nprint(greet("world"))\n\nIt prints: Hello, world!'
)

_FIBONACCI = (
    "Here is a function that yields the Fibonacci numbers:\n\ndef fibonacci(count):\n"
    "    first, second = 0, 1\n    for _ in range(count):\n        yield first\n"
    "        first, second = second, first + second\n\nprint(list(fibonacci(10)))\n\nIt prints:"
    " [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]"
)

_UNKNOWN = (
    "I am a very small model and I do not know that. I can tell you about Python's standard"
    " library: ask me about a function, a class or a module, such as math.sqrt, str.join,"
    " pathlib or heapq."
)

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "hi", "hello", "Hey", "Good morning!", "Hi there"),
        "Hello! I am tide-tiny, a small model that knows Python's standard library. What would"
        " you like to know? You can ask me, for example: What does str.split do?",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Introduce yourself.",
            "who are you",
        ),
        _WHO,
    ),
    (
        ("What can you do?", "Help", "help", "What do you know?", "What should I ask you?"),
        "I can explain functions, classes and modules of Python's standard library. I can also"
        " count, say the alphabet, tell the story of the tide and say what TideServe is. I am"
        " very small, so do not expect much more than that.",
    ),
    (
        ("How are you?", "How are you today?", "how are you"),
        "I am well, thank you. All workers"
        " are up, the journal is in order and no token has been lost. How can I help you?",
    ),
    (
        ("Thank you", "Thanks", "Thanks!", "Thank you!"),
        "You are welcome! Ask me again whenever"
        " you like: there is always a worker listening, whatever happens to the others.",
    ),
    (("Bye", "Goodbye", "Goodbye!", "See you"), "Goodbye! Come back with the next tide."),
    (
        (
            "What is TideServe?",
            "Tell me about TideServe.",
            "Explain TideServe.",
            "what is tideserve",
            "Describe TideServe.",
        ),
        _TIDESERVE,
    ),
    (
        (
            "What happens when a worker dies?",
            "What happens if a worker is killed?",
            "How does TideServe survive the death of a worker?",
            "Why does the stream not break?",
        ),
        _DEATH,
    ),
    (
        (
            "Tell me a story.",
            "Tell me a story",
            "Tell me a story about the tide.",
            "Tell me a long story.",
            "Write a story.",
            "Write a short story.",
        ),
        _TIDE_STORY,
    ),
    (
        ("Say the alphabet.", "What is the alphabet?", "Recite the alphabet.", "List the letters."),
        _ALPHABET,
    ),
    (
        (
            "How do you say hello in other languages?",
            "Say hello in many languages.",
            "Greet me in other languages.",
            "Say hello in other languages.",
        ),
        _GREETINGS,
    ),
    (
        (
            "What is the Zen of Python?",
            "Recite the Zen of Python.",
            "import this",
            "Tell me the Zen of Python.",
        ),
        _ZEN,
    ),
    (
        (
            "Write a function.",
            "Write a Python function.",
            "Show me a function.",
            "Write a small program.",
            "Write hello world in Python.",
        ),
        _EXAMPLE,
    ),
    (
        (
            "Write the Fibonacci numbers in Python.",
            "Write a Fibonacci function.",
            "Fibonacci",
            "Show me the Fibonacci numbers.",
        ),
        _FIBONACCI,
    ),
    (
        (
            "What is the weather today?",
            "What is the capital of France?",
            "Who won the match?",
            "What is the meaning of life?",
            "Tell me a joke.",
            "Write a poem.",
            "What time is it?",
            "What is love?",
            "Who is the president?",
        ),
        _UNKNOWN,
    ),
    (
        ("What is NATS?", "Tell me about NATS."),
        "NATS is a small and fast message broker. In"
        " TideServe it carries requests, tokens and control messages, and its JetStream keeps what"
        " must survive a crash. Weights and key-value caches never travel over it.",
    ),
    (
        ("What is a token journal?", "What is the journal?"),
        "The journal is a JetStream subject to"
        " which a router appends the tokens of each step before it passes them on. Should the"
        " router die, another one takes the journal over and goes on from the last line.",
    ),
    (
        ("What is Python?", "Tell me about Python.", "Explain Python."),
        "Python is a programming"
        " language that lets you work quickly and read easily what you wrote. It comes with a large"
        " standard library: text, numbers, files, dates, networking, testing and much more.",
    ),
    (
        ("What is a GPU?", "Tell me about GPUs."),
        "A GPU is a processor that does the same"
        " arithmetic on very many numbers at once. Language models like that. A spot GPU is one"
        " that the cloud rents out cheaply and takes back whenever it wants, with a short notice.",
    ),
    (
        ("What is a list?", "Explain lists.", "How do I make a list?"),
        "A list is a mutable sequence"
        " of objects, written in square brackets: numbers = [1, 2, 3]. Append to it with"
        " numbers.append(4), take an item with numbers[0], and its length with len(numbers).",
    ),
    (
        ("What is a dictionary?", "Explain dictionaries.", "How do I make a dictionary?"),
        'A dictionary maps keys to values, written in braces: ages = {"Ann": 31, "Bob": 27}. Read a'
        ' value with ages["Ann"], add one with ages["Eve"] = 45, and walk through all of them with'
        " ages.items().",
    ),
    (
        ("How do I read a file?", "How can I read a file in Python?"),
        "Open it and read it in a with"
        ' block, so that it is closed again:\n\nwith open("notes.txt", encoding="utf-8") as file:\n'
        "    for line in file:\n        print(line.rstrip())",
    ),
    (
        ("How do I write a loop?", "What is a for loop?", "How does a for loop work?"),
        "A for loop"
        " runs its body once for every item of an iterable:\n\nfor number in range(3):\n"
        "    print(number)\n\nIt prints 0, 1 and 2, each on a line of its own.",
    ),
    (
        ("How do I sort a list?", "How can I sort a list in Python?"),
        "Call sorted(numbers) to get a"
        " new sorted list, or numbers.sort() to sort the list in place. Both take key, a function"
        " that gives what to compare, and reverse=True to turn the order around.",
    ),
)
