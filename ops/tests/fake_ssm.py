"""Stands in for the AWS CLI's `aws ssm`. Keeps parameters in a JSON file, and records the arguments and the writes.

FAKE_SSM names a folder. Its file `store.json` has the parameters, `calls` a line for each call, and `mode`, if it
exists, how the program misbehaves: denied, quoting or slow.
"""

import json
import os
import sys
import time

FOLDER = os.environ["FAKE_SSM"]
STORE = os.path.join(FOLDER, "store.json")


def read(path, default):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return default


def option(name):
    """Returns the words after an option."""
    if name not in sys.argv:
        return []
    words = sys.argv[sys.argv.index(name) + 1:]
    ends = [index for index, word in enumerate(words) if word.startswith("--")]
    return words[:ends[0]] if ends else words


def fail(text):
    sys.exit(f"\n{text}")


def put(store):
    with open(option("--cli-input-json")[0][len("file://"):], encoding="utf-8") as file:
        request = json.load(file)
    if read(os.path.join(FOLDER, "mode"), "") == "quoting":
        fail(f"Invalid JSON received: {json.dumps(request)}")
    version = store.get(request["Name"], {}).get("Version", 0) + 1
    default_key = "alias/aws/ssm" if request["Type"] == "SecureString" else None
    store[request["Name"]] = {"Name": request["Name"], "Type": request["Type"], "Value": request["Value"],
                              "Version": version, "KeyId": request.get("KeyId", default_key)}
    return {"Version": version}


def answer(operation, store):
    if operation == "put-parameter":
        return put(store)
    if operation == "delete-parameter":
        del store[option("--name")[0]]
        return {}
    if operation == "describe-parameters":
        path = option("--parameter-filters")[0].split("Values=")[1]
        return {"Parameters": [{"Name": path, "KeyId": store[path]["KeyId"]}] if path in store else []}
    if operation == "get-parameters":
        found = [store[path] for path in option("--names") if path in store]
    elif operation == "get-parameters-by-path":
        found = [entry for path, entry in store.items() if os.path.dirname(path) == option("--path")[0]]
    else:
        fail(f"unexpected operation {operation}")
    if "--with-decryption" not in sys.argv:
        return {"Parameters": [{**entry, "Value": "encrypted"} for entry in found]}
    if read(os.path.join(FOLDER, "mode"), "") == "denied":
        fail("An error occurred (AccessDeniedException) when calling the GetParameters operation: no kms:Decrypt")
    return {"Parameters": found}


def main():
    with open(os.path.join(FOLDER, "calls"), "a", encoding="utf-8") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    if read(os.path.join(FOLDER, "mode"), "") == "slow":
        time.sleep(60)
    store = json.loads(read(STORE, "{}"))
    result = answer(sys.argv[2], store)
    with open(STORE, "w", encoding="utf-8") as file:
        json.dump(store, file)
    print(json.dumps(result))


main()
