import Foundation

/// A bundle on disk: a folder with a manifest that names every file and its hash.
public struct BundleFolder: Equatable, Sendable {
    public let url: URL
    public let manifest: Manifest

    /// Read the manifest; the other files are not looked at.
    public init(_ url: URL) throws {
        guard FileManager.default.fileExists(atPath: url.appending(path: Manifest.fileName).path) else {
            throw PocketError(
                "\(url.lastPathComponent) is not a bundle, it has no \(Manifest.fileName); make one: pocketlm export"
            )
        }
        self.url = url
        manifest = try JSONFile.read(Manifest.self, from: url.appending(path: Manifest.fileName))
    }

    /// The artifacts whose files are here: a phone need not be given all that an export made.
    public var targets: [Target] {
        manifest.targets.filter { FileManager.default.fileExists(atPath: folder(of: $0).path) }
    }

    public func folder(of target: Target) -> URL {
        url.appending(path: target.rawValue, directoryHint: .isDirectory)
    }

    /// Where an index of facts is, if the bundle was given one: it is not of the export, and the manifest does not know it.
    public var facts: URL { url.appending(path: FactIndex.fileName) }

    /// Paths that a target needs: the files of its folder and those that all targets share.
    public func paths(for target: Target) -> [String] {
        manifest.files.keys.filter { !$0.contains("/") || $0.hasPrefix("\(target.rawValue)/") }.sorted()
    }

    /// Bytes of an artifact, as the manifest has them.
    public func sizeBytes(of target: Target) -> Int {
        manifest.files.filter { $0.key.hasPrefix("\(target.rawValue)/") }.values.reduce(0) { $0 + $1.sizeBytes }
    }

    /// Compare every file that a target needs with the manifest.
    ///
    /// - Parameter progress: share of the bytes that were read, from 0 to 1.
    /// - Throws: PocketError that names the first file that is missing or has changed; CancellationError.
    public func check(_ target: Target, progress: (Double) -> Void = { _ in }) throws {
        let wanted = paths(for: target)
        let total = wanted.reduce(0) { $0 + (manifest.files[$1]?.sizeBytes ?? 0) }
        var read = 0
        for path in wanted {
            guard let entry = manifest.files[path] else { continue }
            let found = try hash(path, entry) { bytes in
                read += bytes
                progress(total > 0 ? Double(read) / Double(total) : 1)
            }
            guard found == entry.sha256 else {
                throw PocketError("\(path) was changed since the export (sha256 differs); copy the bundle again")
            }
        }
    }

    private func hash(_ path: String, _ entry: FileEntry, advance: (Int) -> Void) throws -> String {
        let file = url.appending(path: path)
        guard let size = try? file.resourceValues(forKeys: [.fileSizeKey]).fileSize else {
            throw PocketError("\(path) is missing; copy the bundle again")
        }
        guard size == entry.sizeBytes else {
            throw PocketError(
                "\(path) was changed since the export (\(size) bytes, not \(entry.sizeBytes)); copy the bundle again"
            )
        }
        return try sha256(of: file, advance: advance)
    }

    public func chatTurns() throws -> ChatTurns {
        let name = "chat_turns.json"
        guard manifest.files[name] != nil else {
            let reason = manifest.notes.first { $0.contains(name) } ?? "no \(name)"
            throw PocketError(
                "this bundle cannot chat: \(reason); use a model with a chat template that can be taken apart")
        }
        return try JSONFile.read(ChatTurns.self, from: url.appending(path: name))
    }

    public func golden() throws -> Golden {
        let golden = try JSONFile.read(Golden.self, from: url.appending(path: Golden.fileName))
        try golden.check(vocabularySize: manifest.shape.vocabularySize)
        return golden
    }
}

/// SHA-256 of a file in hexadecimal, read in pieces; ``advance`` is told the bytes of each.
func sha256(of file: URL, advance: (Int) -> Void = { _ in }) throws -> String {
    let pieceBytes = 1 << 20
    let handle = try FileHandle(forReadingFrom: file)
    defer { try? handle.close() }
    var digest = SHA256Digest()
    while let piece = try readPiece(handle, pieceBytes), !piece.isEmpty {
        try Task.checkCancellation()
        digest.update(piece)
        advance(piece.count)
    }
    return digest.hexadecimal()
}

/// Foundation's buffers are released with the pool on Apple's systems: without one a file would pile up in memory.
private func readPiece(_ handle: FileHandle, _ bytes: Int) throws -> Data? {
    #if canImport(ObjectiveC)
        return try autoreleasepool { try handle.read(upToCount: bytes) }
    #else
        return try handle.read(upToCount: bytes)
    #endif
}
