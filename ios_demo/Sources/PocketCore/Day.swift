import Foundation

/// A date for templates that write one, always with English names: the model has learnt those.
public struct Day: Equatable, Sendable {
    private static let months = [
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ]
    private static let weekdays = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]

    let year: Int
    let month: Int  // from 1
    let day: Int
    let weekday: Int  // from 1, Sunday

    /// The day of a moment, by the user's clock and Gregory's calendar.
    public init(_ date: Date, in zone: TimeZone = .current) {
        var calendar = Calendar(identifier: .gregorian)
        calendar.timeZone = zone
        let parts = calendar.dateComponents([.year, .month, .day, .weekday], from: date)
        (year, month, day, weekday) = (parts.year ?? 1970, parts.month ?? 1, parts.day ?? 1, parts.weekday ?? 1)
    }

    /// strftime for the patterns that chat_turns.json can hold: %d %m %y %Y %b %B %a %A.
    func formatted(_ pattern: String) -> String {
        var result = ""
        var scalars = pattern.unicodeScalars.makeIterator()
        while let scalar = scalars.next() {
            if scalar == "%", let code = scalars.next() {
                result += field(code)
            } else {
                result.unicodeScalars.append(scalar)
            }
        }
        return result
    }

    private func field(_ code: Unicode.Scalar) -> String {
        switch code {
        case "d": twoDigits(day)
        case "m": twoDigits(month)
        case "y": twoDigits(year % 100)
        case "Y": String(year)
        case "B": Self.months[month - 1]
        case "b": String(Self.months[month - 1].prefix(3))
        case "A": Self.weekdays[weekday - 1]
        case "a": String(Self.weekdays[weekday - 1].prefix(3))
        default: "%\(code)"
        }
    }

    private func twoDigits(_ number: Int) -> String {
        number < 10 ? "0\(number)" : String(number)
    }
}
