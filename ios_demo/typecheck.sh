#!/bin/sh
# Checks the types and the concurrency of all Swift code here without a Mac: against the files of Interfaces/, which
# declare what the code uses of Apple's, ExecuTorch's and Hugging Face's modules. Needs libsqlite3-dev, and swiftc on
# the PATH or in SWIFTC.
set -eu
cd "$(dirname "$0")"
swiftc=${SWIFTC:-swiftc}
out=.build/typecheck
rm -rf "$out"
mkdir -p "$out"

# compile NAME OPTION... FILE...: what others can import, and the compiler's whole analysis; no code is made.
compile() {
    name=$1
    shift
    "$swiftc" -swift-version 6 -parse-as-library -module-name "$name" -I "$out" -I Sources/CSQLite \
        -emit-module -emit-module-path "$out/$name.swiftmodule" -emit-sil -wmo -o "$out/$name.sil" "$@"
}

for name in CoreML ExecuTorch Hub Tokenizers UniformTypeIdentifiers UIKit SwiftUI os; do
    compile "$name" -suppress-warnings "Interfaces/$name.swift"
done
for name in PocketCore PocketCoreML PocketExecuTorch; do
    compile "$name" -warnings-as-errors $(find "Sources/$name" -name '*.swift')
done
compile PocketLM -warnings-as-errors -enable-testing App/PocketLM/*.swift
compile PocketLMTests -warnings-as-errors App/PocketLMTests/*.swift
compile PocketLMUITests -warnings-as-errors Interfaces/XCUIAutomation.swift App/PocketLMUITests/*.swift
