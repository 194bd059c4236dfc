-- What most batches are, in half the time: calls of one process that can all go at once, where nothing else waits, is
-- held back, or was given back. It is the same arithmetic as in the files after this one, which decide all the rest;
-- until all is found to be so, nothing is changed.

local function decide_plainly()
  local count, series = asked[position], position + 5 * asked[position] + 7
  local runs = series + 5 + (asked[series + 3] or 0)
  if names ~= 1 or asked[series - 6] ~= FLOW or asked[series - 4] ~= 0 or asked[series - 1] ~= 0
    or asked[series] ~= SERIES or #asked ~= runs - 1 + asked[series + 4] * (1 + asked[series + 3]) then return end
  local row = redis.pcall('HMGET', KEYS[2], 't', 'r')
  if row.err or row[1] ~= ARGV[2] or not row[2] then return end
  local bytes = opened(row[2], KEYS[2] .. ARGV[2])
  if not bytes or #bytes ~= 8 * (7 + 5 * count) then return end  -- it knows of one flow, and of nothing else
  local numbers = read(bytes)
  local flow = 4 + 5 * count
  if numbers[flow] ~= asked[series - 5] or numbers[flow + 1] ~= 0 then return end

  local passed = max(0, now - numbers[1]) / 1e6
  local used, free = {}, {}
  for limit = 1, count do
    local kinds, at = position + 5 * limit - 4, 5 * limit - 2
    local a, b = asked[kinds + 1], asked[kinds + 2]
    if asked[kinds] ~= BUCKET or asked[kinds + 3] ~= 0 or numbers[at] > passed then return end
    used[limit] = max(0, numbers[at + 2] - passed * a)
    free[limit] = b + 0.5e-6 * a + 1e-12 * b
  end
  local width, of = asked[series + 3], {}
  for i = 1, width do
    of[i] = asked[series + 4 + i] + 1
    for j = 1, i - 1 do
      if of[j] == of[i] then return end
    end
  end
  local reply, spent, inverse = {now, numbers[2]}, 0, 1 / asked[series - 3]
  local what = {}
  for limit = 1, count do what[limit] = numbers[5 * limit + 1] end
  for from = runs, #asked, 1 + width do
    local times, share, at = asked[from], 0, #reply + 1
    if times <= 0 then return end
    reply[at] = times
    for i = 1, width do
      local limit, amount = of[i], asked[from + i]
      local taken = times * amount
      if used[limit] + taken > free[limit] then return end
      reply[at + i] = what[limit] + amount
      used[limit], what[limit] = used[limit] + taken, what[limit] + taken
      share = max(share, taken * (1 / asked[position + 5 * limit - 3]))
    end
    spent = spent + share * inverse
  end

  local keep = 0
  numbers[1] = now
  for limit = 1, count do
    local at, said = 5 * limit - 2, #reply
    numbers[at], numbers[at + 1] = 0, max(0, numbers[at + 1] - passed)
    numbers[at + 2], numbers[at + 3] = used[limit], what[limit]
    reply[said + 1], reply[said + 2], reply[said + 3] = 0, used[limit], what[limit]
    keep = max(keep, used[limit] / asked[position + 5 * limit - 3])
  end
  numbers[flow + 2], numbers[flow + 3] = numbers[flow + 2] + spent, max(numbers[flow + 3] - passed, 0)
  write(1, numbers, keep)
  return answer(reply)
end

local plainly = decide_plainly()
if plainly then return plainly end
