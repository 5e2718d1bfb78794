import Foundation

/// Reading and writing the JSON files of a bundle.
enum JSONFile {
    /// The largest file that is read whole: golden.json of a large vocabulary has a few hundred kilobytes.
    private static let largestBytes = 64 << 20

    /// Decode a file of a bundle; a PocketError names the file and what is wrong with it.
    static func read<Content: Decodable>(_ type: Content.Type, from url: URL) throws -> Content {
        let data = try contents(of: url)
        do {
            return try JSONDecoder().decode(type, from: data)
        } catch let error as PocketError {
            throw error
        } catch {
            throw PocketError("\(url.lastPathComponent) is damaged (\(reason(error))); export the model again")
        }
    }

    /// Encode with sorted keys, so that equal results are equal files.
    static func encode(_ content: some Encodable) throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return try encoder.encode(content) + Data("\n".utf8)
    }

    private static func contents(of url: URL) throws -> Data {
        let name = url.lastPathComponent
        guard let size = try? url.resourceValues(forKeys: [.fileSizeKey]).fileSize else {
            throw PocketError("\(name) is missing; give the folder of a finished export")
        }
        guard size <= largestBytes else {
            throw PocketError("\(name) has \(size) bytes, more than such a file can have; export the model again")
        }
        do {
            return try Data(contentsOf: url)
        } catch {
            throw PocketError("\(name) cannot be read (\(PocketError.line(for: error)))")
        }
    }

    private static func reason(_ error: any Error) -> String {
        guard let decoding = error as? DecodingError else { return PocketError.line(for: error) }
        switch decoding {
        case .keyNotFound(let key, _): return "\(key.stringValue) is missing"
        case .typeMismatch(_, let context), .valueNotFound(_, let context): return place(context)
        case .dataCorrupted(let context): return context.codingPath.isEmpty ? "not JSON" : place(context)
        @unknown default: return "not readable"
        }
    }

    private static func place(_ context: DecodingError.Context) -> String {
        let path = context.codingPath.map { $0.intValue.map(String.init) ?? $0.stringValue }.joined(separator: ".")
        return "\(path.isEmpty ? "the whole" : path) is of another kind"
    }
}
